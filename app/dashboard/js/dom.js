// Elements without markup in strings: what others wrote (file names, samples, messages) only ever becomes text.

const SVG = 'http://www.w3.org/2000/svg';

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on') && typeof value === 'function') element.addEventListener(name.slice(2), value);
    // By the style's own properties: our Content-Security-Policy refuses a style attribute.
    else if (name === 'style') for (const [key, v] of Object.entries(value)) element.style.setProperty(key, v);
    else if (name === 'dataset') Object.assign(element.dataset, value);
    else if (name in element && ['value', 'checked', 'selected', 'disabled', 'indeterminate'].includes(name)) element[name] = value;
    else element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// h('button', {class: 'button', onclick: save}, 'Save'). Children: nodes, text, numbers, lists; null and false are left out.
export function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

// The same for SVG.
export function svg(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

// Replace what an element holds.
export function show(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// Set an element's text only where it changed: a selection of the reader's survives, and nothing is laid out anew.
export function setText(element, text) {
  const said = String(text);
  if (element.textContent !== said) element.textContent = said;
}
