// Models that write: one answer streamed into its panel.

import { api } from './api.js';
import { h, setText, show } from './dom.js';
import { count } from './format.js';
import { messages } from './stream.js';
import { scoredToken, tokenTexts } from './tokens.js';

// A request's body for one of the two endpoints. `asked`: {mode: 'chat' | 'text', prompt, turns, options, scores}.
export function requestFor(model, { mode, prompt, turns, options, scores }) {
  const { max_tokens: most, ...rest } = options;
  if (mode === 'chat') {
    return { path: 'chat/completions', body: { model, messages: turns, ...(most ? { max_completion_tokens: most } : {}), ...rest, ...(scores ? { logprobs: true, top_logprobs: 4 } : {}), stream: true } };
  }
  return { path: 'completions', body: { model, prompt, ...(most ? { max_tokens: most } : {}), ...rest, ...(scores ? { logprobs: 4 } : {}), stream: true } };
}

const WHY = { stop: 'ended by itself', length: 'reached its limit' };

// A panel with one answer: panel.write(request, signal) resolves to its text, or to null where it was refused.
export function answerPanel(name) {
  const text = h('div', { class: 'answer', 'aria-live': 'polite', 'aria-busy': 'false', tabindex: '0', role: 'region', 'aria-label': `Answer of ${name}` });
  const foot = h('p', { class: 'hint answer-foot' }, 'Nothing written yet.');
  const element = h('div', { class: 'answer-panel' }, text, foot);

  async function write({ path, body }, signal) {
    show(text);
    text.setAttribute('aria-busy', 'true');
    setText(foot, 'Waiting for the model …');
    const begun = performance.now();
    let first = null;
    let tokens = 0;
    let said = '';
    let reason = null;
    const textOf = tokenTexts();
    try {
      const answer = await api.raw(path, { method: 'POST', body: { ...body, stream_options: { include_usage: true } }, signal });
      for await (const { data } of messages(answer.body)) {
        if (data === '[DONE]') break;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new Error(chunk.error.message);
        if (chunk.usage) tokens = chunk.usage.completion_tokens;
        const part = chunk.choices?.[0];
        if (!part) continue;
        reason = part.finish_reason ?? reason;
        const piece = part.text ?? part.delta?.content ?? '';
        if (piece || part.logprobs) first ??= performance.now();
        said += piece;
        const scored = scoresOf(part.logprobs);
        text.append(...(scored ? scored.map((one) => scoredToken(one, textOf(one.token))) : [piece]));
        setText(foot, 'Writing …');
      }
      const seconds = (performance.now() - (first ?? begun)) / 1000;
      const pace = tokens > 1 && seconds > 0.05 ? `, ${Math.round(tokens / seconds)} a second` : '';
      setText(foot, `${count(tokens, 'token')}${pace}; ${WHY[reason] ?? reason ?? 'broken off'}.`);
      if (said === '') show(text, h('span', { class: 'muted' }, 'It ended at once, without a word.'));
      return said;
    } catch (error) {
      if (signal.aborted || error.name === 'AbortError') {
        setText(foot, 'Stopped.');
        return said;
      }
      setText(foot, '');
      show(text, h('p', { class: 'field-error' }, error.message));
      return null;
    } finally {
      text.setAttribute('aria-busy', 'false');
    }
  }

  return { element, write, clear: () => { show(text); setText(foot, 'Nothing written yet.'); return null; } };
}

// [{token, logprob, others}] of either endpoint's form, null without scores.
function scoresOf(logprobs) {
  if (!logprobs) return null;
  if (logprobs.content) return logprobs.content.map(({ token, logprob, top_logprobs: top }) => ({ token, logprob, others: (top ?? []).map((one) => [one.token, one.logprob]) }));
  return (logprobs.tokens ?? []).map((token, i) => ({ token, logprob: logprobs.token_logprobs[i], others: Object.entries(logprobs.top_logprobs?.[i] ?? {}) }));
}

// Names that can be asked to write: models, and the checkpoints of the latest jobs. Nothing of it is needed to type one.
export async function writers(signal) {
  const [models, jobs] = await Promise.all([
    api.get('models', { signal }).catch(() => ({ data: [] })),
    api.get('fine_tuning/jobs', { query: { limit: 6 }, signal }).catch(() => ({ data: [] })),
  ]);
  const saved = await Promise.all(jobs.data.map((job) => api.get(`fine_tuning/jobs/${job.id}/checkpoints`, { signal }).catch(() => ({ data: [] }))));
  return [...models.data.map((model) => model.id), ...saved.flatMap((list) => list.data.map((one) => one.fine_tuned_model_checkpoint))];
}
