// Files on their way up. XMLHttpRequest, since fetch does not tell how far it is.

import { ApiError, getKey } from './api.js';
import { h } from './dom.js';
import { bytes, isolated } from './format.js';

// The file as the service keeps it. onProgress(sent, total); stops when `signal` fires. Raises ApiError, AbortError.
export function upload(file, { onProgress = () => {}, signal } = {}) {
  return new Promise((resolve, reject) => {
    const form = new FormData();
    form.append('purpose', 'fine-tune');
    form.append('file', file, file.name);
    const request = new XMLHttpRequest();
    request.open('POST', '/v1/files');
    request.setRequestHeader('Authorization', `Bearer ${getKey()}`);
    request.upload.onprogress = (event) => onProgress(event.loaded, event.total);
    request.onload = () => settle(request, resolve, reject);
    request.onerror = () => reject(new ApiError(0, { message: `${isolated(file.name)} could not be sent: the connection broke. Try again.` }));
    request.onabort = () => reject(new DOMException('left', 'AbortError'));
    signal?.addEventListener('abort', () => request.abort(), { once: true });
    request.send(form);
  });
}

function settle(request, resolve, reject) {
  let said;
  try {
    said = JSON.parse(request.responseText);
  } catch {
    said = { error: { message: `The service answered ${request.status} without saying why.` } };
  }
  if (request.status === 200) resolve(said);
  else reject(new ApiError(request.status, said.error));
}

// A place to drop files on, or to choose them: take(file, progress), where progress(sent, total) moves its bar.
export function dropZone({ label, hint, multiple = false, take }) {
  const input = h('input', { type: 'file', class: 'sr', multiple, accept: '.jsonl,.json,.txt,.csv,.tsv,.parquet', 'aria-label': label });
  const text = h('span', { class: 'drop-text' }, h('strong', {}, label), h('span', { class: 'muted' }, hint));
  const bar = h('span');
  const progress = h('div', { class: 'progress', hidden: true }, bar);
  const zone = h('label', { class: 'drop' }, input, text, progress);

  async function takeAll(files) {
    for (const file of multiple ? files : files.slice(0, 1)) {
      progress.hidden = false;
      bar.style.width = '0';
      text.lastChild.textContent = `Sending ${isolated(file.name)} (${bytes(file.size)}) …`;
      try {
        await take(file, (sent, total) => { bar.style.width = `${(100 * sent) / total}%`; });
      } finally {
        progress.hidden = true;
        text.lastChild.textContent = hint;
      }
    }
    input.value = '';
  }

  input.addEventListener('change', () => takeAll([...input.files]));
  zone.addEventListener('dragover', (event) => {
    event.preventDefault();
    zone.classList.add('over');
  });
  zone.addEventListener('dragleave', () => zone.classList.remove('over'));
  zone.addEventListener('drop', (event) => {
    event.preventDefault();
    zone.classList.remove('over');
    takeAll([...event.dataTransfer.files]);
  });
  return zone;
}
