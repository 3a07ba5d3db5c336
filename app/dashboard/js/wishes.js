// What may be asked of a job, wherever it is shown: cancel, pause, resume, retry, duplicate.

import { api } from './api.js';
import { go } from './router.js';
import { confirmed, toast } from './parts.js';

export const ENDED = ['succeeded', 'failed', 'cancelled'];
export const jobPath = (id) => `fine_tuning/jobs/${encodeURIComponent(id)}`;

// The body that would make this job again, changed by `hyperparameters`.
export function bodyOf(job, hyperparameters = {}) {
  const kind = job.method.type;
  const given = { ...job.given, ...hyperparameters };
  // One thing under two names is refused: the new one stands.
  if ('num_epochs' in hyperparameters || 'max_steps' in hyperparameters) delete given.n_epochs;
  if ('num_epochs' in hyperparameters) { delete given.max_steps; delete given.training_steps; }
  if ('max_steps' in hyperparameters) { delete given.num_epochs; delete given.training_steps; }
  if ('total_train_batch_size' in hyperparameters) delete given.batch_size;
  if ('learning_rate' in hyperparameters) delete given.learning_rate_multiplier;
  const body = { model: job.model, training_file: job.training_file, method: { type: kind, [kind]: { hyperparameters: given } } };
  for (const name of ['validation_file', 'suffix', 'metadata', 'integrations', 'refuse_on']) {
    if (job[name] !== null && job[name] !== undefined) body[name] = job[name];
  }
  if (job.priority !== 'normal') body.priority = job.priority;
  const { labels, memory_bytes: memory } = job.requires;
  if (labels.length || memory !== null) body.requires = { labels, ...(memory === null ? {} : { memory_bytes: memory }) };
  return body;
}

// #/new with the form filled in.
export function handOver(body) {
  sessionStorage.setItem('new-job', JSON.stringify(body));
  go('new');
}

// What makes sense in a job's state: [{name, label, danger, run() → the job as it is now, or undefined}].
export function wishes(job) {
  const ended = ENDED.includes(job.status);
  const asked = job.cancel_requested || job.pause_requested;
  const post = (verb, said) => async () => {
    const now = await api.post(`${jobPath(job.id)}/${verb}`);
    toast(said);
    return now;
  };
  const found = [];
  if (job.status === 'paused') found.push({ name: 'resume', label: 'Resume', run: post('resume', 'Queued again; it goes on where it was.') });
  if (['queued', 'running'].includes(job.status) && !asked) found.push({ name: 'pause', label: 'Pause', run: post('pause', 'It saves a checkpoint and pauses.') });
  if (!ended && !job.cancel_requested) {
    found.push({
      name: 'cancel',
      label: 'Cancel',
      danger: true,
      run: async () => {
        const text = job.status === 'running' ? 'It saves a checkpoint, which stays, and ends. A cancelled job cannot be resumed.' : 'It ends now and cannot be resumed.';
        return (await confirmed('Cancel this job?', text, 'Cancel the job')) ? post('cancel', 'Cancelling.')() : undefined;
      },
    });
  }
  if (ended) {
    found.push({
      name: 'retry',
      label: 'Retry',
      run: async () => {
        const made = await api.post('fine_tuning/jobs', bodyOf(job));
        toast('The same job, queued anew.');
        go(`jobs/${made.id}`);
        return undefined;
      },
    });
  }
  found.push({ name: 'duplicate', label: 'Duplicate', run: async () => handOver(bodyOf(job)) });
  return found;
}

// How a job stands, in a few words.
export function standing(job) {
  if (ENDED.includes(job.status)) return null; // what was wished for before is history
  if (job.cancel_requested) return 'cancelling';
  if (job.pause_requested) return 'pausing';
  return { preparing: 'preparing', evaluating: 'evaluating', saving: 'saving', publishing: 'publishing' }[job.progress.phase] ?? null;
}

// 0 to 1; null where it is not known.
export function share(job) {
  if (job.status === 'succeeded') return 1;
  const { step, total_steps: total } = job.progress;
  return total ? Math.min(1, step / total) : null;
}

// The new model's own part of its name, or the base: "bread" or "tiny-gpt2".
export const nameOf = (job) => job.suffix || job.model;
