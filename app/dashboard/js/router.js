// The address's fragment chooses the page: #/jobs/ftjob-1?tab=events. Nothing of it is ever sent to the server.

// [pattern, name of the module in pages/]; a colon names a parameter.
const ROUTES = [
  ['jobs', 'jobs'],
  ['jobs/:id', 'job'],
  ['new', 'new'],
  ['compare', 'compare'],
  ['playground', 'playground'],
  ['models', 'models'],
  ['files', 'files'],
  ['keys', 'keys'],
  ['webhooks', 'webhooks'],
  ['machines', 'machines'],
];
export const HOME = '#/jobs';

// {page, params} of a fragment; page is null where there is none such. Params: those of the path, then of the query.
export function match(fragment) {
  const [path, query = ''] = fragment.replace(/^#\/?/, '').split('?');
  const parts = path.split('/').filter(Boolean);
  for (const [pattern, page] of ROUTES) {
    const wanted = pattern.split('/');
    if (wanted.length !== parts.length) continue;
    const params = {};
    if (wanted.every((part, i) => {
      if (part.startsWith(':')) params[part.slice(1)] = decoded(parts[i]);
      return part.startsWith(':') || part === parts[i];
    })) return { page, params: { ...Object.fromEntries(new URLSearchParams(query)), ...params } };
  }
  return { page: null, params: {} };
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

// #/compare?jobs=a,b from ('compare', {jobs: 'a,b'})
export function link(path, query = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== '');
  return `#/${path}${given.length ? `?${new URLSearchParams(given)}` : ''}`;
}

// Keep a page's own state in the address, without showing the page anew. Not once the reader has chosen another page: its
// hashchange comes a moment after the address has changed, and would find this page's there again.
export function keep(path, query) {
  if (location.hash.replace(/^#\/?/, '').split('?')[0] !== path) return;
  history.replaceState(null, '', link(path, query));
}

export function go(path, query) {
  location.hash = link(path, query);
}
