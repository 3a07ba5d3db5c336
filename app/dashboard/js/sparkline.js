// A small curve without axes, for a row of a list.

import { svg } from './dom.js';
import { number } from './format.js';

const WIDTH = 110;
const HEIGHT = 26;
const EDGE = 3;

// An <svg> of [step, value] pairs; spark.set(pairs) draws anew, only where they changed.
export function sparkline(name) {
  const line = svg('path', { fill: 'none' });
  const dot = svg('circle', { r: 2.2 });
  const element = svg('svg', { class: 'spark', viewBox: `0 0 ${WIDTH} ${HEIGHT}`, width: WIDTH, height: HEIGHT, role: 'img' }, line, dot);
  let drawn = null;
  element.set = (pairs) => {
    const key = JSON.stringify(pairs);
    if (key === drawn) return;
    drawn = key;
    const values = pairs.map(([, value]) => value);
    element.setAttribute('aria-label', values.length ? `${name}: from ${number(values[0], 3)} to ${number(values.at(-1), 3)}` : `${name}: none yet`);
    if (values.length < 2) {
      line.removeAttribute('d');
      dot.setAttribute('visibility', 'hidden');
      return;
    }
    const [first, last] = [pairs[0][0], pairs.at(-1)[0]];
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const x = (step) => EDGE + ((WIDTH - 2 * EDGE) * (step - first)) / (last - first || 1);
    const y = (value) => HEIGHT - EDGE - ((HEIGHT - 2 * EDGE) * (value - low)) / (high - low || 1);
    const points = pairs.map(([step, value]) => [x(step).toFixed(1), y(value).toFixed(1)]);
    line.setAttribute('d', `M${points.map((point) => point.join(' ')).join('L')}`);
    dot.setAttribute('cx', points.at(-1)[0]);
    dot.setAttribute('cy', points.at(-1)[1]);
    dot.setAttribute('visibility', 'visible');
  };
  element.set([]);
  return element;
}
