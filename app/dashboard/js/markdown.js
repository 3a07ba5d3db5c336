// The Markdown of model cards: headings, lists, tables, paragraphs, `code`. Made of elements, so that nothing in a text is
// ever markup; what is not known stays text.

import { h } from './dom.js';

// Nodes for a text, without its front matter.
export function renderMarkdown(text) {
  const blocks = text.replace(/^---\n[\s\S]*?\n---\n/, '').split(/\n{2,}/);
  return blocks.flatMap((block) => renderBlock(block.replace(/^\n+|\n+$/g, '').split('\n'))).filter(Boolean);
}

function renderBlock(lines) {
  const found = [];
  while (lines.length) {
    const [line] = lines;
    const heading = /^(#{1,6}) (.*)/.exec(line);
    if (heading) {
      found.push(h(`h${Math.min(4, heading[1].length + 1)}`, {}, inline(heading[2])));
      lines.shift();
    } else if (line.startsWith('- ')) found.push(h('ul', {}, take(lines, '- ').map((one) => h('li', {}, inline(one.slice(2))))));
    else if (line.startsWith('|')) found.push(renderTable(take(lines, '|')));
    else {
      const text = [];
      while (lines.length && !/^(#{1,6} |- |\|)/.test(lines[0])) text.push(lines.shift());
      if (text.join('').trim()) found.push(h('p', {}, inline(text.join(' '))));
    }
  }
  return found;
}

function take(lines, mark) {
  const found = [];
  while (lines.length && lines[0].startsWith(mark)) found.push(lines.shift());
  return found;
}

function renderTable(lines) {
  const cells = (line) => line.replace(/^\||\|\s*$/g, '').split('|').map((cell) => cell.trim());
  const [top, rule, ...rows] = lines;
  if (!rule) return h('p', {}, top);
  return h('div', { class: 'table-box', tabindex: '0', role: 'region', 'aria-label': 'Table' }, h('table', {},
    h('thead', {}, h('tr', {}, cells(top).map((cell) => h('th', { scope: 'col' }, inline(cell))))),
    h('tbody', {}, rows.map((row) => h('tr', {}, cells(row).map((cell) => h('td', {}, inline(cell))))))));
}

function inline(text) {
  return text.split(/(`[^`]+`)/).map((part, i) => (i % 2 ? h('code', {}, part.slice(1, -1)) : part.replace(/\\([\\`*_{}[\]<>#|!])/g, '$1')));
}
