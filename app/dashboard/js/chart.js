// A line chart: Plotly behind a few verbs. Loaded from this server when the first chart is made, or is sure to be.

import { show, svg } from './dom.js';
import { pinchable } from './pinch.js';

const MARGIN = { l: 60, r: 12, t: 8, b: 32 }; // pixels around the plot itself
const MOST_POINTS = 6_000; // of one line; more are no picture, and the page must stay quick

let loading = null;

const SCRIPT = '/dashboard/plotly.min.js';

// Begins to fetch what charts need, and runs none of it: a page that will have some says so before it asks for their
// numbers. Reading that script keeps a page from answering for half a second, which is for later.
export function warm() {
  if (loading || document.querySelector(`link[href="${SCRIPT}"]`)) return;
  const link = document.createElement('link');
  Object.assign(link, { rel: 'preload', as: 'script', href: SCRIPT });
  document.head.append(link);
}

function plotly() {
  loading ??= new Promise((resolve, reject) => {
    const script = document.createElement('script');
    const restore = withoutStyles();
    script.src = SCRIPT;
    script.onload = () => {
      restore();
      resolve(window.Plotly);
    };
    script.onerror = () => {
      restore();
      loading = null;
      reject(new Error('The charts could not be loaded.'));
    };
    document.head.append(script);
  });
  return loading;
}

// As it loads, the script makes a <style> for maps, which we never draw and our Content-Security-Policy refuses (a
// complaint on the console at every visit). Until it has run, what it makes is an inert template.
function withoutStyles() {
  const make = document.createElement.bind(document);
  document.createElement = (name, options) => make(name === 'style' ? 'template' : name, options);
  return () => delete document.createElement; // the prototype's shows again
}

// A token of style.css as Plotly can read it.
function colour(name) {
  const probe = document.createElement('span');
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

const faint = (rgb, alpha) => rgb.replace(/^rgb\(([^)]+)\)$/, `rgba($1, ${alpha})`);

// Exponential, without the pull of a beginning at zero. `weight` 0 leaves the values as they are, 0.99 is nearly still.
export function smooth(values, weight) {
  if (!weight) return values;
  let last = 0;
  let mass = 0;
  return values.map((value) => {
    if (value === null || value === undefined) return null;
    last = last * weight + (1 - weight) * value;
    mass = mass * weight + (1 - weight);
    return last / mass;
  });
}

// The curves alone, where a chart will have them: seen at once, before the library that draws all else has been read.
export function sketch(element, lines) {
  const [width, height] = [element.clientWidth - MARGIN.l - MARGIN.r, element.clientHeight - MARGIN.t - MARGIN.b];
  const steps = lines.flatMap((line) => [line.steps[0], line.steps.at(-1)]);
  const [first, last] = [Math.min(...steps), Math.max(...steps)];
  const [low, high] = span(lines);
  const room = (high - low) / 18 || Math.abs(low) || 1; // as the chart leaves above and below
  const x = (step) => (MARGIN.l + (width * (step - first)) / (last - first || 1)).toFixed(1);
  const y = (value) => (MARGIN.t + (height * (high + room - value)) / (high - low + 2 * room)).toFixed(1);
  show(element, svg('svg', { class: 'sketch', 'aria-hidden': 'true' }, lines.map((line) => svg('path', {
    d: `M${line.steps.map((step, i) => `${x(step)} ${y(line.values[i])}`).join('L')}`, style: { stroke: `var(--${line.colour})` },
  }))));
}

// A chart in `element`, which needs a height of its own: so nothing jumps when it is drawn.
//   const chart = await makeChart(element, {label: 'Loss', signal, onZoom: (from, to) => …});
//   chart.draw(lines, options, marks)   anew or changed
// A line: {name, steps, values, elapsed (seconds since its job began), colour: 'chart-1', dots, dash: 'dot', smoothed: false}.
// Options: {log, smoothing: 0 to 0.99, axis: 'step' | 'time', range: [from, to] of steps or null for all,
// ticksuffix, signed: values may be below zero, legend: false where the page has one of its own}.
// A mark, of steps: {step, value, text} or {from, to}. onZoom(from, to) tells the steps that the reader wants to see, nulls
// for all; nothing is shown before the caller draws with that range, so that several charts can follow one.
export async function makeChart(element, { label, signal, onZoom = null, tickformat = '~g' }) {
  const Plotly = await plotly();
  const chart = { draw() {} };
  if (signal?.aborted) return chart;
  element.setAttribute('role', 'img');
  element.setAttribute('aria-label', label);
  const touch = matchMedia('(pointer: coarse)').matches;
  let drawn = null;
  let all = null; // {axis, lines, range} as last drawn without a range: what lies around a part that is zoomed into
  let toSteps = (x) => x;

  chart.draw = (lines, options = {}, marks = []) => {
    const first = drawn === null;
    drawn = [lines, options, marks];
    const settings = { log: false, smoothing: 0, axis: 'step', range: null, ticksuffix: '', signed: false, legend: true, ...options };
    const unit = settings.axis === 'time' ? timeUnit(lines) : null;
    const whole = settings.range === null || all?.axis !== settings.axis;
    if (whole) all = { axis: settings.axis, lines, range: null };
    toSteps = unit ? (x) => stepAt([lines[0], all.lines[0]], x * unit.seconds) : (x) => x;
    if (first) element.replaceChildren(); // a sketch
    Plotly.react(element, lines.flatMap((line) => traces(line, settings, unit)), layout(lines, settings, marks, unit, { tickformat, touch, own: !onZoom }), {
      displayModeBar: false, doubleClick: onZoom ? false : 'reset', scrollZoom: false, showTips: false,
    });
    if (whole) all.range = element.layout.xaxis.range?.map(Number) ?? [0, 1]; // a chart that is not seen has none
    if (first) listen();
  };

  // Only what has been drawn once can be listened to.
  function listen() {
    element.on('plotly_relayout', (change) => {
      const from = change['xaxis.range[0]'];
      if (onZoom && from !== undefined) onZoom(toSteps(Number(from)), toSteps(Number(change['xaxis.range[1]'])));
    });
    // Plotly takes any two touches in a moment for one.
    if (!touch) element.on('plotly_doubleclick', () => onZoom?.(null, null));
    if (onZoom) pinchable(element, view, signal);
    const redraw = () => chart.draw(...drawn);
    window.addEventListener('theme', redraw, { signal });
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', redraw, { signal });
    // Plotly's own `responsive` looks at the window alone; a box may change without it.
    const watch = new ResizeObserver(() => element.offsetWidth && Plotly.Plots.resize(element));
    watch.observe(element);
    signal?.addEventListener('abort', () => {
      watch.disconnect();
      Plotly.purge(element);
    }, { once: true });
  }

  const view = {
    shown: () => element.layout.xaxis.range.map(Number),
    whole: () => all.range,
    edges: () => {
      const box = element.getBoundingClientRect();
      return [box.left + MARGIN.l, box.right - MARGIN.r];
    },
    show: (from, to) => Plotly.relayout(element, { 'xaxis.range': [from, to] }),
    done: (from, to) => (from === null ? onZoom(null, null) : onZoom(toSteps(from), toSteps(to))),
  };
  return chart;
}

function traces(line, { smoothing, axis }, unit) {
  const rgb = colour(line.colour ?? 'chart-1');
  const x = axis === 'time' ? line.elapsed.map((seconds) => seconds / unit.seconds) : line.steps;
  const base = { type: 'scatter', x, name: escaped(line.name), hovertemplate: `%{y:.5~g}<extra>${escaped(line.name)}</extra>` };
  const weight = line.smoothed === false ? 0 : smoothing;
  const look = { mode: line.dots ? 'lines+markers' : 'lines', marker: { color: rgb, size: 5 }, line: { color: rgb, width: 1.8, dash: line.dash } };
  if (!weight) return [{ ...base, ...look, y: line.values }];
  return [
    { ...base, y: line.values, mode: 'lines', line: { color: faint(rgb, 0.3), width: 1 }, hoverinfo: 'skip', hovertemplate: null, showlegend: false },
    { ...base, ...look, y: smooth(line.values, weight) },
  ];
}

function layout(lines, { log, axis, range, ticksuffix, signed, legend }, marks, unit, { tickformat, touch, own }) {
  const text = colour('muted');
  const line = colour('line');
  const warn = colour('warn');
  const grid = { gridcolor: line, linecolor: line, zerolinecolor: line, tickfont: { color: text }, fixedrange: touch };
  const stepped = axis !== 'time';
  const shown = range === null ? null : stepped ? range : range.map((step) => elapsedAt(lines[0], step) / unit.seconds);
  return {
    autosize: true,
    margin: MARGIN,
    paper_bgcolor: 'rgba(0,0,0,0)',
    plot_bgcolor: 'rgba(0,0,0,0)',
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: text },
    showlegend: legend && lines.length > 1,
    legend: { orientation: 'h', x: 1, xanchor: 'right', ...(rises(lines) ? { y: 0, yanchor: 'bottom' } : { y: 1, yanchor: 'top' }), bgcolor: faint(colour('surface'), 0.8), font: { color: colour('text') }, itemclick: false, itemdoubleclick: false },
    hovermode: 'x unified',
    hoverlabel: { bgcolor: colour('raised'), bordercolor: line, font: { color: colour('text') } },
    dragmode: touch ? false : 'zoom',
    uirevision: own ? axis : undefined, // a chart without onZoom keeps the reader's zoom by itself
    xaxis: {
      ...grid, type: 'linear', tickformat: stepped ? ',~d' : '~g', hoverformat: stepped ? ',d' : '.3~g', nticks: 9, zeroline: false, ...(stepped && few(lines, range) ? { dtick: 1 } : {}),
      ticksuffix: stepped ? '' : ` ${unit.name}`, ...(shown ? { range: shown, autorange: false } : { autorange: true }),
    },
    yaxis: { ...grid, type: log ? 'log' : 'linear', tickformat, fixedrange: true, ...heights(lines, log), nticks: 6, zeroline: false, ticksuffix, rangemode: signed ? 'normal' : 'nonnegative' },
    shapes: stepped ? marks.map((mark) => drawMark(mark, warn)) : [],
    annotations: stepped ? marks.filter((mark) => mark.text).map((mark) => noteMark(mark, log, warn)) : [],
  };
}

// Whether the first line ends high, where the legend would cover it.
function rises([line]) {
  const [low, high] = span(line ? [line] : []);
  return line !== undefined && line.values.at(-1) > (low + high) / 2;
}

// Plotly would put a line that never changes into a range of its own making, which says 1 where all is 0.0001.
function heights(lines, log) {
  const [low, high] = span(lines);
  return low === high && low > 0 && !log ? { range: [0, 2 * low], autorange: false } : { autorange: true };
}

// The lowest and the highest value of all lines.
function span(lines) {
  let [low, high] = [Infinity, -Infinity];
  for (const { values } of lines) for (const value of values) [low, high] = [Math.min(low, value), Math.max(high, value)];
  return [low, high];
}

function drawMark(mark, rgb) {
  if (mark.from !== undefined) {
    return { type: 'rect', xref: 'x', yref: 'paper', x0: mark.from, x1: mark.to, y0: 0, y1: 1, fillcolor: faint(rgb, 0.13), line: { width: 0 }, layer: 'below' };
  }
  return { type: 'line', xref: 'x', yref: 'paper', x0: mark.step, x1: mark.step, y0: 0, y1: 1, line: { color: rgb, width: 1, dash: 'dot' } };
}

function noteMark(mark, log, rgb) {
  return {
    x: mark.step, y: log ? Math.log10(mark.value) : mark.value, text: escaped(mark.text), showarrow: true, arrowhead: 2, arrowsize: 0.9, arrowwidth: 1.2, arrowcolor: rgb,
    ax: 0, ay: -28, font: { color: rgb, size: 11.5 }, bgcolor: colour('surface'), borderpad: 2,
  };
}

// Whether so few steps are shown that ticks would fall between them.
function few(lines, range) {
  const [from, to] = range ?? [Math.min(...lines.map((line) => line.steps[0])), Math.max(...lines.map((line) => line.steps.at(-1)))];
  return to - from < 9;
}

const UNITS = [{ name: 's', seconds: 1 }, { name: 'min', seconds: 60 }, { name: 'h', seconds: 3600 }, { name: 'd', seconds: 86400 }];

// The unit in which the longest line has at least two.
function timeUnit(lines) {
  const longest = Math.max(0, ...lines.map((line) => line.elapsed.at(-1) ?? 0));
  return UNITS.findLast((unit) => longest >= 2 * unit.seconds) ?? UNITS[0];
}

// By the first of the lines that reaches so far, both ways.
function stepAt(lines, seconds) {
  const line = lines.find(({ elapsed }) => elapsed[0] <= seconds && seconds <= elapsed.at(-1)) ?? lines.at(-1);
  const at = line.elapsed.findIndex((elapsed) => elapsed >= seconds);
  return line.steps.at(at) ?? 0;
}

function elapsedAt(line, step) {
  const at = line.steps.findIndex((one) => one >= step);
  return line.elapsed.at(at) ?? 0;
}

// Plotly reads a few tags in texts.
const escaped = (text) => String(text).replaceAll('&', '&amp;').replaceAll('<', '&lt;');

// How one zooms, with what is in the reader's hand.
export function zoomHint() {
  return matchMedia('(pointer: coarse)').matches ? 'Two fingers zoom, two taps show all.' : 'Drag across a chart to zoom, double-click to see all.';
}

// A line that grows: drops every second point of the older half when it becomes long.
export function thin(points) {
  if (points.length <= MOST_POINTS) return points;
  const half = points.length >> 1;
  return points.filter((point, i) => i >= half || i % 2 === 0 || point.valid_loss !== undefined);
}
