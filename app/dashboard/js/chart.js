// A line chart: Plotly behind a few verbs. Loaded when the first chart is made, from this server.

const MOST_POINTS = 6_000; // of one line; more are no picture, and the page must stay quick

let loading = null;

function plotly() {
  loading ??= new Promise((resolve, reject) => {
    const script = document.createElement('script');
    const restore = withoutStyles();
    script.src = '/dashboard/plotly.min.js';
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

// A chart in `element`, which needs a height of its own: so nothing jumps when it is drawn.
//   const chart = await makeChart(element, {label: 'Loss', signal, onZoom: (from, to) => …});
//   chart.draw(lines, options, marks)   anew or changed
// A line: {name, steps, values, elapsed (seconds since its job began), colour: 'chart-1', dots, dash: 'dot', smoothed: false}.
// Options: {log, smoothing: 0 to 0.99, axis: 'step' | 'time', range: [from, to] of steps or null for all,
// ticksuffix, signed: values may be below zero}.
// A mark, of steps: {step, value, text} or {from, to}. onZoom(from, to) tells the steps that the reader wants to see, nulls
// for all; nothing is shown before the caller draws with that range, so that several charts can follow one.
export async function makeChart(element, { label, signal, onZoom = null, tickformat = '~g' }) {
  const Plotly = await plotly();
  const chart = { draw() {} };
  if (signal?.aborted) return chart;
  element.setAttribute('role', 'img');
  element.setAttribute('aria-label', label);
  const touch = matchMedia('(pointer: coarse)').matches;
  let drawn = [[], {}, []];
  let toSteps = (x) => x;

  chart.draw = (lines, options = {}, marks = []) => {
    drawn = [lines, options, marks];
    const settings = { log: false, smoothing: 0, axis: 'step', range: null, ticksuffix: '', signed: false, ...options };
    const unit = settings.axis === 'time' ? timeUnit(lines) : null;
    if (unit) toSteps = (x) => stepAt(lines[0], x * unit.seconds);
    else toSteps = (x) => x;
    Plotly.react(element, lines.flatMap((line) => traces(line, settings, unit)), layout(lines, settings, marks, unit, { tickformat, touch, own: !onZoom }), {
      displayModeBar: false, doubleClick: onZoom ? false : 'reset', scrollZoom: false, showTips: false,
    });
  };
  chart.draw([]);
  element.on('plotly_relayout', (change) => {
    const from = change['xaxis.range[0]'];
    if (onZoom && from !== undefined) onZoom(toSteps(Number(from)), toSteps(Number(change['xaxis.range[1]'])));
  });
  element.on('plotly_doubleclick', () => onZoom?.(null, null));
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

function layout(lines, { log, axis, range, ticksuffix, signed }, marks, unit, { tickformat, touch, own }) {
  const text = colour('muted');
  const line = colour('line');
  const warn = colour('warn');
  const grid = { gridcolor: line, linecolor: line, zerolinecolor: line, tickfont: { color: text }, fixedrange: touch };
  const stepped = axis !== 'time';
  const shown = range === null ? null : stepped ? range : range.map((step) => elapsedAt(lines[0], step) / unit.seconds);
  return {
    autosize: true,
    margin: { l: 52, r: 12, t: 8, b: 32 },
    paper_bgcolor: 'rgba(0,0,0,0)',
    plot_bgcolor: 'rgba(0,0,0,0)',
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: text },
    showlegend: lines.length > 1,
    legend: { orientation: 'h', x: 1, xanchor: 'right', y: 1, yanchor: 'top', bgcolor: faint(colour('surface'), 0.8), font: { color: colour('text') }, itemclick: false, itemdoubleclick: false },
    hovermode: 'x unified',
    hoverlabel: { bgcolor: colour('raised'), bordercolor: line, font: { color: colour('text') } },
    dragmode: touch ? false : 'zoom',
    uirevision: own ? axis : undefined, // a chart without onZoom keeps the reader's zoom by itself
    xaxis: {
      ...grid, type: 'linear', tickformat: stepped ? ',~d' : '~g', hoverformat: stepped ? ',d' : '.3~g', nticks: 9, zeroline: false, ...(stepped && few(lines, range) ? { dtick: 1 } : {}),
      ticksuffix: stepped ? '' : ` ${unit.name}`, ...(shown ? { range: shown, autorange: false } : { autorange: true }),
    },
    yaxis: { ...grid, type: log ? 'log' : 'linear', tickformat, fixedrange: true, autorange: true, nticks: 6, zeroline: false, ticksuffix, rangemode: signed ? 'normal' : 'nonnegative' },
    shapes: stepped ? marks.map((mark) => drawMark(mark, warn)) : [],
    annotations: stepped ? marks.filter((mark) => mark.text).map((mark) => noteMark(mark, log, warn)) : [],
  };
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

function stepAt(line, seconds) {
  const at = line.elapsed.findIndex((elapsed) => elapsed >= seconds);
  return line.steps.at(at) ?? 0;
}

function elapsedAt(line, step) {
  const at = line.steps.findIndex((one) => one >= step);
  return line.elapsed.at(at) ?? 0;
}

// Plotly reads a few tags in texts.
const escaped = (text) => String(text).replaceAll('&', '&amp;').replaceAll('<', '&lt;');

// A line that grows: drops every second point of the older half when it becomes long.
export function thin(points) {
  if (points.length <= MOST_POINTS) return points;
  const half = points.length >> 1;
  return points.filter((point, i) => i >= half || i % 2 === 0 || point.valid_loss !== undefined);
}
