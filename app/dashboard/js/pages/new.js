// A new job: data, model, recipe; beside it what that would do, counted anew with every change.

import { api } from '../api.js';
import { codeButton } from '../code.js';
import { h, show as fill } from '../dom.js';
import { fileChooser } from '../filechooser.js';
import { button, buttonLink, dialog, field, head, toast } from '../parts.js';
import { recipeForm } from '../recipeform.js';
import { rehearsal } from '../rehearsal.js';
import { go } from '../router.js';

export const title = 'New job';
const WAIT = 450; // ms without a change before the service counts anew

export async function show(root, params, signal) {
  const [form, models] = await Promise.all([
    api.get('fine_tuning/recipe', { signal }),
    api.get('models', { signal }).catch(() => ({ data: [] })),
  ]);
  const handed = takeHandedOver();
  let idempotencyKey = newKey();
  let timer = 0;
  let counting = new AbortController();
  let presetName = null;
  const { rest } = handed; // what has no field here: sent as it came

  const training = fileChooser({ label: 'Training file', param: 'training_file', changed, signal, required: true });
  const validation = fileChooser({ label: 'Validation file', param: 'validation_file', changed, signal });
  const model = h('input', { name: 'model', list: 'base-models', autocomplete: 'off', spellcheck: 'false', required: true });
  const modelField = field('Base model', model, { hint: 'One of the list, one of yours to train on, or a name of the hub such as owner/model.' });
  const suffix = h('input', { name: 'suffix', maxlength: 64, autocomplete: 'off', spellcheck: 'false', placeholder: 'none' });
  const suffixField = field('Suffix', suffix, { hint: 'Goes into the name of the tuned model.' });
  const priority = h('select', { name: 'priority' }, [['normal', 'normal'], ['high', 'high: before all others'], ['low', 'low: after all others']].map(([value, text]) => h('option', { value }, text)));
  const priorityField = field('Priority', priority);
  const method = h('select', { name: 'method' }, h('option', { value: 'supervised' }, 'supervised: learn the answers'), h('option', { value: 'dpo' }, 'dpo: learn which of two answers is preferred'));
  const methodField = field('Method', method);
  const recipe = recipeForm(form, () => { // it is no preset's any more
    presetName = null;
    mark();
    changed();
  });
  const presets = h('div', { class: 'presets', role: 'group', 'aria-label': 'Presets' }, form.presets.map((preset) => h('button', {
    type: 'button', class: 'preset', 'aria-pressed': 'false', dataset: { preset: preset.id }, onclick: () => take(preset),
  }, h('strong', {}, preset.title), h('span', { class: 'muted' }, preset.says))));
  const create = button('Create the job', { kind: 'primary', type: 'submit' });
  const beside = rehearsal();

  function body() {
    const found = { ...rest, model: model.value.trim(), training_file: training.value() ?? '' };
    if (validation.value()) found.validation_file = validation.value();
    if (suffix.value.trim()) found.suffix = suffix.value.trim();
    if (priority.value !== 'normal') found.priority = priority.value;
    const hyperparameters = recipe.values();
    if (method.value === 'dpo') found.method = { type: 'dpo', dpo: { hyperparameters } };
    else if (Object.keys(hyperparameters).length) found.hyperparameters = hyperparameters;
    return found;
  }

  function changed() {
    clearRefusals();
    idempotencyKey = newKey(); // another job: what was sent before is not repeated
    counting.abort();
    clearTimeout(timer);
    beside.wait();
    timer = setTimeout(count, WAIT);
  }

  async function count() {
    const asked = body();
    if (!asked.training_file || !asked.model) {
      beside.want(asked.training_file ? 'Choose a base model.' : 'Choose a training file: then this tells what the job would do.');
      return;
    }
    counting = new AbortController();
    const mine = AbortSignal.any([counting.signal, signal]);
    try {
      const found = await api.post('fine_tuning/jobs', { ...asked, dry_run: true }, { signal: mine });
      recipe.resolved(found.recipe);
      beside.tell(found, goTo);
      training.preview(asked);
    } catch (error) {
      if (mine.aborted || error.name === 'AbortError') return;
      recipe.resolved(null);
      refuse(error.param, error.message);
      beside.refuse(error, goTo);
    }
  }

  function clearRefusals() {
    recipe.clear();
    for (const one of [training, validation]) one.refuse(null);
    for (const one of [modelField, suffixField, priorityField, methodField]) one.refuse(null);
  }

  // The field that the service names; null where there is none such.
  function fieldOf(param) {
    const name = (param ?? '').replace(/^method\.(supervised|dpo)\.hyperparameters\.|^hyperparameters\./, '');
    const own = { training_file: training, validation_file: validation, model: modelField, from_checkpoint: modelField, suffix: suffixField, priority: priorityField, 'method.type': methodField, method: methodField };
    return own[name] ?? recipe.field(name);
  }

  // Said beside its field, while the reader may be typing in another.
  function refuse(param, message) {
    fieldOf(param)?.refuse(message);
  }

  function goTo(param) {
    const element = fieldOf(param)?.element ?? fieldOf(param);
    const part = element?.closest('details');
    if (part) part.open = true;
    element?.querySelector('input, select, textarea')?.focus();
  }

  function take(preset) {
    presetName = preset.id;
    recipe.set(preset.hyperparameters);
    method.value = preset.method;
    mark();
    changed();
  }

  function mark() {
    for (const one of presets.children) one.setAttribute('aria-pressed', String(one.dataset.preset === presetName));
  }

  // A file of pairs is for dpo, and only that.
  training.onFile = (file) => {
    const wanted = file?.shape === 'preference' ? 'dpo' : 'supervised';
    if (!file || wanted === method.value) return;
    if (wanted === 'dpo') take(form.presets.find((preset) => preset.method === 'dpo') ?? { hyperparameters: {}, method: 'dpo' });
    else take(form.presets[0]);
    toast(wanted === 'dpo' ? 'The file holds preference pairs: the method is dpo now.' : 'The file holds no preference pairs: the method is supervised now.');
  };

  async function send(event) {
    event.preventDefault();
    clearTimeout(timer);
    create.disabled = true;
    clearRefusals();
    try {
      const job = await api.post('fine_tuning/jobs', body(), { signal, headers: { 'idempotency-key': idempotencyKey } });
      toast('The job is in the queue.');
      go(`jobs/${job.id}`);
    } catch (error) {
      if (signal.aborted) return;
      refuse(error.param, error.message);
      beside.refuse(error, goTo);
      if (fieldOf(error.param)) goTo(error.param);
      else toast(error.message, 'error');
    } finally {
      create.disabled = false;
    }
  }

  function pasteCard() {
    const area = h('textarea', { class: 'mono', rows: 12, placeholder: '### Training hyperparameters\n\n- learning_rate: 0.0005\n- train_batch_size: 64\n…' });
    const asked = field('A model card, or its “Training hyperparameters”', area);
    const box = dialog('From a model card', h('form', { class: 'stack', onsubmit: read }, asked, h('div', { class: 'actions end' }, button('Use it', { kind: 'primary', type: 'submit' }))));
    async function read(event) {
      event.preventDefault();
      try {
        const card = await api.post('fine_tuning/recipe/card', { card: area.value }, { signal });
        const names = Object.keys(card.hyperparameters);
        if (!names.length) {
          asked.refuse('No line of it names a hyperparameter of a recipe.');
          return;
        }
        take({ id: 'card', method: method.value, hyperparameters: card.hyperparameters });
        toast(`${names.length} hyperparameters taken${card.ignored.length ? `; left out: ${card.ignored.join(', ')}` : ''}.`);
        box.close();
      } catch (error) {
        asked.refuse(error.message);
      }
    }
  }

  model.addEventListener('input', changed);
  suffix.addEventListener('input', changed);
  priority.addEventListener('input', changed);
  method.addEventListener('input', () => {
    if (method.value !== 'dpo') recipe.set({ ...recipe.values(), beta: undefined });
    changed();
  });
  model.value = handed.model ?? params.model ?? models.data.find((one) => one.id === 'tiny-gpt2')?.id ?? models.data.at(-1)?.id ?? '';
  suffix.value = handed.suffix ?? '';
  priority.value = handed.priority ?? 'normal';
  method.value = handed.method;
  recipe.set(handed.hyperparameters);
  if (!Object.keys(handed.hyperparameters).length && handed.method === 'supervised') presetName = 'automatic';
  mark();

  fill(root,
    head(title, { about: handed.from, actions: [button('From a model card', { onclick: pasteCard }), buttonLink('All fields explained', '/docs', { kind: 'quiet' })] }),
    h('form', { class: 'job-form', novalidate: true, onsubmit: send },
      h('div', { class: 'stack' },
        h('section', { class: 'card stack' }, h('h2', {}, 'Data'), training.element, validation.element),
        h('section', { class: 'card stack' }, h('h2', {}, 'Model'), h('div', { class: 'pair' }, modelField, suffixField, priorityField),
          h('datalist', { id: 'base-models' }, models.data.map((one) => h('option', { value: one.id })))),
        h('section', { class: 'card stack' }, h('h2', {}, 'Recipe'), presets, methodField, recipe.element)),
      h('aside', { class: 'card beside', 'aria-label': 'What this job would do' }, h('h2', {}, 'What this job would do'), beside.element,
        h('div', { class: 'actions' }, create, codeButton(() => ({ path: 'fine_tuning/jobs', body: body() }))))));
  await Promise.all([training.choose(handed.training_file ?? params.file ?? null), validation.choose(handed.validation_file ?? null)]);
  changed();
}

const newKey = () => [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, '0')).join('');

// What another page wants to begin with: the body of a job. Taken once.
function takeHandedOver() {
  const text = sessionStorage.getItem('new-job');
  sessionStorage.removeItem('new-job');
  let body = {};
  try {
    body = JSON.parse(text ?? '{}') ?? {};
  } catch {
    toast('What was handed over could not be read.', 'error');
  }
  const { model, training_file: trainingFile, validation_file: validationFile, suffix, priority, method, hyperparameters, ...rest } = body;
  const type = method?.type ?? 'supervised';
  return {
    model, suffix, priority, rest,
    training_file: trainingFile,
    validation_file: validationFile,
    method: type === 'dpo' ? 'dpo' : 'supervised',
    hyperparameters: { ...hyperparameters, ...method?.[type]?.hyperparameters },
    from: text ? 'Begun with another job’s values: change what is to be different.' : 'Data, a model, and how to train it.',
  };
}
