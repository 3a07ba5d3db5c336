// Downloads go by a link, which has no header for a key: a ticket stands in it, good for this path, once, for a minute.

import { api } from './api.js';
import { h } from './dom.js';

// Without a name the answer's own. Raises ApiError where the key may not. The browser shows how it goes.
export async function download(path, name = '', signal = undefined) {
  const { url } = await api.post('download_tickets', { path }, { signal });
  const anchor = h('a', { href: url, download: name, hidden: true });
  document.body.append(anchor);
  anchor.click();
  anchor.remove();
}

export const modelPath = (model) => `/v1/models/${encodeURIComponent(model)}`;
