// An error as a person wants it: what happened, in the service's words, and what to do.

import { h, show as fill } from '../dom.js';
import { remedyLine } from './diagnosis.js';

const LESS_MEMORY = [
  { says: 'Compute activations twice instead of keeping them.', hyperparameters: { gradient_checkpointing: true } },
  { says: 'Train a small part of the weights (LoRA).', hyperparameters: { lora_rank: 16 } },
  { says: 'One example at a time; the result is the same.', hyperparameters: { train_batch_size: 1 } },
];
const AGAIN = 'Nothing in the job itself is known to be wrong: “Retry” queues the same job anew.';
const FILE = ['Look at the file’s report, mend it and upload it anew.', '#/files', 'To the files'];
// What to do about a code: a sentence, and remedies or a place to go.
const ADVICE = {
  out_of_memory: { say: 'The job needs more memory than the device has. Any of these needs less:', remedies: () => LESS_MEMORY },
  non_finite: { say: 'Smaller steps keep the numbers in bounds:', remedies: (job) => [
    { says: 'A third of the learning rate.', hyperparameters: { learning_rate: Number((job.recipe.learning_rate / 3).toPrecision(2)) } },
    { says: 'Scale large gradients down.', hyperparameters: { max_grad_norm: 1 } },
  ].filter((remedy) => Object.values(remedy.hyperparameters).every(Number.isFinite)) },
  max_runtime_exceeded: { say: 'The last checkpoint stays and can be used. More time, or no limit, lets the job end by itself:', remedies: (job) => [
    { says: 'Twice the time.', hyperparameters: { max_runtime: 2 * job.recipe.max_runtime } },
  ] },
  stalled: { say: 'A machine that hangs or a device that fell out looks like this. Look at the worker’s log, then retry.' },
  disk_full: { say: 'Free disk space on the machine (old models and files are the first to look at), then retry.', place: ['', '#/models', 'To the models'] },
  invalid_training_file: { place: FILE },
  invalid_validation_file: { place: FILE },
  refused_finding: { place: FILE },
  file_not_found: { place: ['The file’s bytes are gone. Upload it anew.', '#/files', 'To the files'] },
  model_unavailable: { place: ['Choose another base model, or mend that one.', '#/models', 'To the models'] },
  invalid_model: { place: ['Choose another base model.', '#/models', 'To the models'] },
  worker_crashed: { say: AGAIN },
  worker_lost: { say: `The machine that trained went away. ${AGAIN}` },
  publish_failed: { say: `Training itself was done, and its last checkpoint stays. ${AGAIN}` },
  internal_error: { say: AGAIN },
};

// {element, set(job)}; hidden while there is no error.
export function makeFailure() {
  const element = h('section', { class: 'notice bad failure', role: 'alert', hidden: true });
  let drawn = null;
  return {
    element,
    set(job) {
      const key = job.error && JSON.stringify(job.error);
      if (key === drawn) return;
      drawn = key;
      element.hidden = !job.error;
      if (!job.error) return;
      const { code, message, param } = job.error;
      const [first, ...rest] = message.split('\n');
      const advice = ADVICE[code] ?? { say: AGAIN };
      const [where, href, label] = advice.place ?? [];
      fill(element,
        h('h2', {}, `Failed: ${code.replaceAll('_', ' ')}`),
        h('p', {}, first),
        param ? h('p', { class: 'muted' }, 'Where: ', h('code', {}, param)) : null,
        rest.length ? h('details', {}, h('summary', {}, 'What it said last'), h('pre', { tabindex: '0' }, rest.join('\n'))) : null,
        h('p', { class: 'todo' }, advice.say ?? '', where ?? '', href ? [' ', h('a', { href }, label)] : null),
        advice.remedies ? h('ul', { class: 'remedies' }, advice.remedies(job).map((remedy) => h('li', {}, remedyLine(remedy, job)))) : null);
    },
  };
}
