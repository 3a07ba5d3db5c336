// A line chart: Plotly behind a few verbs. Loaded when the first chart is made, from this server.

const MOST_POINTS = 6_000; // of one line; more are no picture, and the page must stay quick

let loading = null;

function plotly() {
  loading ??= new Promise((resolve, reject) => {
    const script = document.createElement('script');
    script.src = '/dashboard/plotly.min.js';
    script.onload = () => resolve(window.Plotly);
    script.onerror = () => {
      loading = null;
      reject(new Error('The charts could not be loaded.'));
    };
    document.head.append(script);
  });
  return loading;
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
//   chart.draw(lines, options, marks)   anew or changed; the reader's zoom stays
// A line: {name, steps, values, times (seconds since 1970), colour: 'chart-1', dots: true, dash: 'dot', smoothed: true}.
// Options: {log, smoothing, axis: 'step' | 'time'}. A mark: {step, value, text} or {from, to, text} (of steps).
// onZoom(from, to) tells the range of steps that is shown, nulls for all.
export async function makeChart(element, { label, signal, onZoom = null, tickformat = '~g' }) {
  const Plotly = await plotly();
  if (signal?.aborted) return { draw() {}, reset() {} };
  element.setAttribute('role', 'img');
  element.setAttribute('aria-label', label);
  const touch = matchMedia('(pointer: coarse)').matches;
  let drawn = null;
  let axis = 'step';

  function traces(lines, options) {
    return lines.flatMap((line) => {
      const rgb = colour(line.colour ?? 'chart-1');
      const x = options.axis === 'time' ? line.times.map((at) => at * 1000) : line.steps;
      const base = { type: 'scatter', x, name: line.name, hovertemplate: `%{y:.5~g}<extra>${escaped(line.name)}</extra>` };
      const weight = line.smoothed === false ? 0 : options.smoothing;
      const shape = { color: rgb, width: 1.8, dash: line.dash };
      const mode = line.dots ? 'lines+markers' : 'lines';
      const marker = { color: rgb, size: 5 };
      if (!weight) return [{ ...base, y: line.values, mode, marker, line: shape }];
      return [
        { ...base, y: line.values, mode: 'lines', line: { color: faint(rgb, 0.28), width: 1 }, hoverinfo: 'skip', hovertemplate: null, showlegend: false },
        { ...base, y: smooth(line.values, weight), mode, marker, line: shape },
      ];
    });
  }

  function layout(options, marks, many) {
    const text = colour('muted');
    const line = colour('line');
    const warn = colour('warn');
    const grid = { gridcolor: line, linecolor: line, zerolinecolor: line, tickfont: { color: text }, automargin: true };
    const stepped = options.axis !== 'time';
    return {
      autosize: true,
      margin: { l: 48, r: 14, t: 10, b: 30 },
      paper_bgcolor: 'rgba(0,0,0,0)',
      plot_bgcolor: 'rgba(0,0,0,0)',
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: text },
      showlegend: many,
      legend: { orientation: 'h', x: 0, y: 1.02, yanchor: 'bottom', font: { color: colour('text') }, itemwidth: 30 },
      hovermode: 'x unified',
      hoverlabel: { bgcolor: colour('raised'), bordercolor: line, font: { color: colour('text') } },
      dragmode: touch ? false : 'zoom',
      uirevision: options.axis,
      xaxis: { ...grid, type: stepped ? 'linear' : 'date', tickformat: stepped ? ',d' : '', hoverformat: stepped ? ',d' : '%H:%M:%S', nticks: 8 },
      yaxis: { ...grid, type: options.log ? 'log' : 'linear', tickformat, fixedrange: true, uirevision: String(options.log), autorange: true, nticks: 6 },
      shapes: stepped ? marks.map((mark) => drawMark(mark, warn)) : [],
      annotations: stepped ? marks.filter((mark) => mark.text && mark.value !== undefined).map((mark) => ({
        x: mark.step, y: options.log ? Math.log10(mark.value) : mark.value, text: escaped(mark.text), showarrow: true, arrowhead: 2, arrowsize: 0.9, arrowwidth: 1, arrowcolor: warn, ax: 0, ay: -26, font: { color: warn, size: 11 }, bgcolor: colour('surface'),
      })) : [],
    };
  }

  const chart = {
    draw(lines, options = {}, marks = []) {
      const settings = { log: false, smoothing: 0, axis: 'step', ...options };
      axis = settings.axis;
      drawn = [lines, settings, marks];
      Plotly.react(element, traces(lines, settings), layout(settings, marks, lines.length > 1), {
        responsive: true, displayModeBar: false, doubleClick: 'reset', scrollZoom: false,
      });
    },
    reset: () => Plotly.relayout(element, { 'xaxis.autorange': true }),
  };
  chart.draw([], {});
  element.on('plotly_relayout', (change) => {
    if (!onZoom || axis !== 'step') return;
    if (change['xaxis.range[0]'] !== undefined) onZoom(change['xaxis.range[0]'], change['xaxis.range[1]']);
    else if (change['xaxis.autorange']) onZoom(null, null);
  });
  const redraw = () => chart.draw(...drawn);
  window.addEventListener('theme', redraw, { signal });
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', redraw, { signal });
  signal?.addEventListener('abort', () => Plotly.purge(element), { once: true });
  return chart;
}

// Plotly reads a few tags in texts.
const escaped = (text) => String(text).replaceAll('&', '&amp;').replaceAll('<', '&lt;');

function drawMark(mark, colourOfIt) {
  if (mark.from !== undefined) {
    return { type: 'rect', xref: 'x', yref: 'paper', x0: mark.from, x1: mark.to, y0: 0, y1: 1, fillcolor: faint(colourOfIt, 0.14), line: { width: 0 }, layer: 'below' };
  }
  return { type: 'line', xref: 'x', yref: 'paper', x0: mark.step, x1: mark.step, y0: 0, y1: 1, line: { color: colourOfIt, width: 1, dash: 'dot' } };
}

// A line that grows: drops every second point of the older half when it becomes long.
export function thin(points) {
  if (points.length <= MOST_POINTS) return points;
  const half = points.length >> 1;
  return points.filter((point, i) => i >= half || i % 2 === 0 || point.valid_loss !== undefined);
}
