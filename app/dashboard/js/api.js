// The public API, as any other client uses it: the key in the header, refusals as ApiError.

const STORED = 'key';

// What was refused, in OpenAI's shape: `param` names the field at fault, `code` is for machines. Status 0: no answer.
export class ApiError extends Error {
  constructor(status, { message, param = null, code = null }) {
    super(message);
    this.name = 'ApiError';
    this.status = status;
    this.param = param;
    this.code = code;
  }
}

export function getKey() {
  return sessionStorage.getItem(STORED) ?? localStorage.getItem(STORED);
}

// For this tab, or with `remember` until it is forgotten.
export function setKey(key, remember = false) {
  forgetKey();
  (remember ? localStorage : sessionStorage).setItem(STORED, key);
}

export function forgetKey() {
  sessionStorage.removeItem(STORED);
  localStorage.removeItem(STORED);
}

function address(path, query) {
  const url = new URL(path.startsWith('/') ? path : `/v1/${path}`, location.origin);
  for (const [name, value] of Object.entries(query ?? {})) {
    if (value !== null && value !== undefined && value !== '') url.searchParams.set(name, value);
  }
  return url;
}

// A Response whose status is 2xx, for what is no JSON: streams, texts. Raises ApiError; AbortError where `signal` fires.
// A 401 asks for the key, unless `headers` brought one to be tried.
async function raw(path, { method = 'GET', query, body, headers, signal } = {}) {
  const key = getKey();
  const own = body === undefined || body instanceof FormData || body instanceof Blob;
  let answer;
  try {
    answer = await fetch(address(path, query), {
      method,
      signal,
      credentials: 'omit',
      cache: 'no-store',
      headers: {
        ...(key ? { authorization: `Bearer ${key}` } : {}),
        ...(own ? {} : { 'content-type': 'application/json' }),
        ...headers,
      },
      body: own ? body : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new ApiError(0, { message: 'The service does not answer. Is it running?', code: 'no_answer' });
  }
  if (answer.ok) return answer;
  const refusal = await readRefusal(answer);
  if (answer.status === 401 && !headers?.authorization && key === getKey()) window.dispatchEvent(new CustomEvent('key-wanted', { detail: refusal }));
  throw refusal;
}

async function readRefusal(answer) {
  try {
    const { error } = await answer.json();
    return new ApiError(answer.status, error);
  } catch {
    return new ApiError(answer.status, { message: `The service answered ${answer.status} without saying why.` });
  }
}

async function call(method, path, body, options = {}) {
  const answer = await raw(path, { ...options, method, body });
  return answer.status === 204 ? null : answer.json();
}

// Paths are below /v1 unless they begin with a slash: api.get('fine_tuning/jobs', {query: {limit: 50}, signal}).
export const api = {
  get: (path, options) => call('GET', path, undefined, options),
  post: (path, body, options) => call('POST', path, body, options),
  del: (path, options) => call('DELETE', path, undefined, options),
  raw,
};
