// The recipe's fields as inputs, made of the service's own description of them: no default, range or meaning stands here.

import { h, setText } from './dom.js';
import { number, whole } from './format.js';
import { field } from './parts.js';

const LISTS = new Set(['sample_prompts', 'lora_targets']);
const LINES = new Set(['sample_prompts']);

// form.element; form.values() what differs from the defaults; form.set(values) instead of all; form.field(name), which has refuse(message);
// form.resolved(recipe) shows what "auto" would become. `changed` is called with every change.
export function recipeForm({ schema, parts, aliases }, changed) {
  const fields = new Map();
  let others = {}; // names that have no field here: they are sent as they came, for the service to judge
  const element = h('div', { class: 'recipe' }, parts.map((part, place) => {
    const inside = part.fields.map((name) => {
      const made = oneField(name, schema.properties[name], () => { count(); changed(); });
      fields.set(name, made);
      return made.element;
    });
    const told = h('span', { class: 'hint' });
    const box = h('details', { class: 'part', open: place === 0 }, h('summary', {}, h('h3', {}, part.title), told), h('div', { class: 'part-fields' }, inside));
    box.count = () => {
      const names = part.fields.filter((name) => fields.get(name).value() !== undefined);
      setText(told, names.length ? names.map((name) => `${name} ${brief(fields.get(name).value())}`).join(' · ') : 'as usual');
      box.classList.toggle('has-values', names.length > 0);
    };
    return box;
  }));
  const count = () => { for (const box of element.children) box.count(); };

  function set(values) {
    const given = Object.fromEntries(Object.entries(values).map(([name, value]) => [aliases[name] ?? name, value]));
    for (const [name, made] of fields) made.set(given[name]);
    others = Object.fromEntries(Object.entries(given).filter(([name]) => !fields.has(name)));
    count();
  }

  function values() {
    return { ...others, ...Object.fromEntries([...fields].map(([name, made]) => [name, made.value()]).filter(([, value]) => value !== undefined)) };
  }


  function clear() {
    for (const made of fields.values()) made.element.refuse(null);
  }

  function resolved(recipe) {
    for (const [name, made] of fields) made.resolved(recipe?.[name]);
  }

  set({});
  return { element, values, set, clear, resolved, field: (name) => fields.get(name)?.element ?? null };
}

const brief = (value) => (typeof value === 'number' ? number(value) : Array.isArray(value) ? `(${value.length})` : String(value));

// The kinds of a field: those of its schema, taken apart where "auto" or null are among them.
function kindsOf(about) {
  return about.anyOf ?? [about];
}

function oneField(name, about, changed) {
  const kinds = kindsOf(about);
  const choices = kinds.flatMap((kind) => kind.enum ?? []);
  const usual = about.default;
  const usually = usual === null ? 'none' : Array.isArray(usual) ? (usual.join(', ') || 'none') : String(usual);
  let input;
  if (choices.length || kinds[0].type === 'boolean') {
    const options = choices.length ? choices : [true, false];
    input = h('select', { name }, h('option', { value: '' }, `${said(usual)} (usual)`), options.filter((one) => one !== usual).map((one) => h('option', { value: String(one) }, said(one))));
  } else if (LINES.has(name)) input = h('textarea', { name, rows: 3, placeholder: 'One a line' });
  else input = h('input', { name, type: 'text', inputmode: kinds[0].type === 'integer' ? 'numeric' : kinds[0].type === 'number' ? 'decimal' : 'text', placeholder: usually, autocomplete: 'off', spellcheck: 'false' });
  input.addEventListener('input', changed);
  const element = field(name, input, { hint: about.description });
  element.classList.add('recipe-field');
  element.querySelector('label').classList.add('mono');
  const range = rangeOf(kinds);
  if (range) element.querySelector('.hint').append(` ${range}`);

  function value() {
    const text = input.value.trim();
    if (text === '') return undefined;
    if (kinds[0].type === 'boolean') return text === 'true';
    if (LISTS.has(name) && text !== 'auto') return text.split(LINES.has(name) ? '\n' : ',').map((one) => one.trim()).filter(Boolean);
    // What is no number goes as it is written: the service says what is wrong with it.
    return !choices.length && text !== 'auto' && Number.isFinite(Number(text)) && kinds.some((kind) => ['integer', 'number'].includes(kind.type)) ? Number(text) : text;
  }

  function set(given) {
    const none = given === undefined || given === null || given === usual;
    if (!none && input.tagName === 'SELECT' && ![...input.options].some((option) => option.value === String(given))) input.append(h('option', { value: String(given) }, String(given)));
    input.value = none ? '' : Array.isArray(given) ? given.join(LINES.has(name) ? '\n' : ', ') : String(given);
    element.classList.toggle('has-value', !none);
    element.refuse(null);
  }

  input.addEventListener('input', () => {
    element.classList.toggle('has-value', input.value.trim() !== '');
    element.refuse(null);
  });

  // A dry run tells what "auto" comes to.
  function resolved(found) {
    if (input.tagName !== 'INPUT') return;
    const known = found !== undefined && found !== null && usual === 'auto' && found !== 'auto' && !Array.isArray(found);
    input.placeholder = known ? `auto: ${typeof found === 'number' ? number(found) : found}` : usually;
  }

  return { element, value, set, resolved };
}

const said = (value) => (value === true ? 'yes' : value === false ? 'no' : String(value));

function rangeOf(kinds) {
  const found = kinds.find((kind) => ['minimum', 'exclusiveMinimum', 'maximum', 'exclusiveMaximum'].some((name) => name in kind));
  if (!found) return null;
  const size = (value) => (Math.abs(value) >= 1000 ? whole(value) : number(value));
  const low = 'minimum' in found ? `From ${size(found.minimum)}` : 'exclusiveMinimum' in found ? `Above ${size(found.exclusiveMinimum)}` : null;
  const high = 'maximum' in found ? `to ${size(found.maximum)}` : 'exclusiveMaximum' in found ? `below ${size(found.exclusiveMaximum)}` : null;
  return `${[low, high].filter(Boolean).join(' ')}.`;
}
