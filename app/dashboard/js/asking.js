// The same question for several models side by side: one prompt, one set of knobs, a panel each.

import { answerPanel, requestFor } from './answers.js';
import { codeButton } from './code.js';
import { h, show } from './dom.js';
import { button, field } from './parts.js';
import { scoreLegend } from './tokens.js';

// [name on the wire, label, placeholder: what holds when it is left empty]
const KNOBS = [
  ['max_tokens', 'Tokens at most', ''], ['temperature', 'Temperature', '1'], ['top_p', 'Top p', '1'], ['top_k', 'Top k', '0: all'], ['min_p', 'Min p', '0'],
  ['repetition_penalty', 'Repetition penalty', '1'], ['presence_penalty', 'Presence penalty', '0'], ['frequency_penalty', 'Frequency penalty', '0'], ['seed', 'Seed', 'by chance'], ['stop', 'Stop at', 'nothing'],
];
const MOST_TOKENS = 128; // where nothing is said

// `models`: names, or with `choose` what stands in the inputs at first. asked.element; asked.setModels(names).
export function asking({ models, choose = false, signal, onModels = () => {} }) {
  let stopping = null;
  let panels = [];
  let turns = []; // of chat: {user, answers}
  const mode = { now: 'text' };
  const prompt = h('textarea', { name: 'prompt', rows: 4, placeholder: 'Stir the' });
  const promptField = field('Prompt', prompt, { hint: 'Ctrl+Enter asks.' });
  const system = h('textarea', { name: 'system', rows: 2, placeholder: 'None' });
  const systemField = field('System message', system);
  const history = h('div', { class: 'stack', hidden: true });
  const knobs = KNOBS.map(([name, label, usual]) => {
    const input = h('input', { name, placeholder: usual, autocomplete: 'off', inputmode: name === 'stop' ? 'text' : 'decimal' });
    return [name, input, field(label, input)];
  });
  const scores = h('input', { type: 'checkbox', name: 'scores' });
  const legend = h('div', { hidden: true }, scoreLegend());
  const place = h('div', { class: 'writers' });
  const run = button('Ask', { kind: 'primary', type: 'submit' });
  const halt = button('Stop', { onclick: () => stopping?.abort(), disabled: true });
  const anew = button('New conversation', { kind: 'quiet', onclick: () => { turns = []; drawHistory(); panels.forEach((panel) => panel.answer.clear()); } });
  const segments = [['text', 'Completion'], ['chat', 'Chat']].map(([value, text]) => h('button', { type: 'button', onclick: () => turnTo(value) }, text));

  function turnTo(value) {
    mode.now = value;
    ['text', 'chat'].forEach((one, i) => segments[i].setAttribute('aria-pressed', String(one === value)));
    promptField.querySelector('label').textContent = value === 'chat' ? 'Your message' : 'Prompt';
    prompt.placeholder = value === 'chat' ? 'How long does rice take?' : 'Stir the';
    for (const element of [systemField, anew]) element.hidden = value !== 'chat';
    knobs[0][1].placeholder = value === 'chat' ? 'as fit' : String(MOST_TOKENS);
    drawHistory();
  }

  function options() {
    const found = mode.now === 'chat' ? {} : { max_tokens: MOST_TOKENS }; // a chat's answer is as long as fits
    for (const [name, input] of knobs) {
      const text = name === 'stop' ? input.value : input.value.trim();
      if (text) found[name] = name === 'stop' ? text.replaceAll('\\n', '\n') : Number.isFinite(Number(text)) ? Number(text) : text;
    }
    return found;
  }

  function request(panel, place_) {
    const spoken = turns.flatMap(({ user, answers }) => [{ role: 'user', content: user }, { role: 'assistant', content: answers[place_] ?? '' }]);
    const first = system.value.trim() ? [{ role: 'system', content: system.value.trim() }] : [];
    return requestFor(panel.name(), { mode: mode.now, prompt: prompt.value, turns: [...first, ...spoken, { role: 'user', content: prompt.value }], options: options(), scores: scores.checked });
  }

  async function ask(event) {
    event?.preventDefault();
    if (stopping) return;
    const asked = prompt.value;
    if (mode.now === 'chat' && !asked.trim()) {
      promptField.refuse('Say something first.');
      return;
    }
    promptField.refuse(null);
    if (panels.every((panel) => !panel.name())) {
      panels[0].refuse('Name a model to ask.');
      return;
    }
    stopping = new AbortController();
    const either = AbortSignal.any([stopping.signal, signal]);
    run.disabled = true;
    halt.disabled = false;
    const answers = await Promise.all(panels.map((panel, i) => (panel.name() ? panel.answer.write(request(panel, i), either) : panel.answer.clear())));
    stopping = null;
    run.disabled = false;
    halt.disabled = true;
    if (signal.aborted || mode.now !== 'chat' || answers.every((one) => one === null)) return;
    turns.push({ user: asked, answers });
    prompt.value = '';
    drawHistory();
  }

  function drawHistory() {
    history.hidden = mode.now !== 'chat' || turns.length < 2;
    const before = turns.slice(0, -1);
    show(history, h('h2', {}, 'Said before'), before.map(({ user, answers }) => [
      h('p', { class: 'turn user' }, user),
      h('div', { class: 'writers' }, answers.map((text, i) => h('p', { class: 'turn assistant' }, h('small', {}, panels[i]?.name() ?? ''), text ?? '–')))]));
  }

  function setModels(names) {
    turns = [];
    panels = names.map((name, i) => {
      const input = h('input', { list: 'writers', value: name, name: `model-${i + 1}`, autocomplete: 'off', spellcheck: 'false', placeholder: 'none' });
      const answer = answerPanel(`model ${i + 1}`);
      const named = choose ? field(`Model ${i + 1}`, input) : h('h3', { class: 'wrap' }, name);
      const panel = { answer, name: () => (choose ? input.value.trim() : name), refuse: (message) => { named.refuse(message); input.focus(); } };
      input.addEventListener('input', () => named.refuse(null));
      input.addEventListener('change', () => { turns = []; drawHistory(); onModels(panels.map((one) => one.name())); });
      panel.element = h('section', { class: 'card writer', 'aria-label': name || `Model ${i + 1}` },
        named, answer.element, h('div', { class: 'actions' }, codeButton(() => request(panel, i), { small: true })));
      return panel;
    });
    show(place, panels.map((panel) => panel.element));
  }

  scores.addEventListener('input', () => { legend.hidden = !scores.checked; });
  prompt.addEventListener('keydown', (event) => { if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) ask(event); });
  turnTo('text');
  setModels(models);
  const element = h('form', { class: 'stack', novalidate: true, onsubmit: ask },
    h('div', { class: 'card stack' },
      h('div', { class: 'row spread' }, h('div', { class: 'segments', role: 'group', 'aria-label': 'Endpoint' }, segments), h('label', { class: 'check' }, scores, 'Colour tokens by probability')),
      systemField, promptField,
      h('details', { class: 'part' }, h('summary', {}, h('h2', {}, 'Sampling'), h('span', { class: 'hint' }, 'how tokens are drawn')), h('div', { class: 'knobs' }, knobs.map(([, , one]) => one))),
      h('div', { class: 'actions' }, run, halt, anew)),
    history, legend, place);
  return { element, setModels, prompt };
}
