import { emptyState, head } from '../parts.js';

export const title = 'Keys';

export function show(root) {
  root.append(head(title), emptyState('Not here yet', 'This page is being made.'));
}
