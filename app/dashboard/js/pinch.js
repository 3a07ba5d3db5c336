// Zoom by touch: two fingers spread or narrow a chart's horizontal axis, one moves along it once it is zoomed into, two
// taps show all. One finger up or down is the browser's: the page scrolls (touch-action in style.css).

const TAPS = 350; // ms between two taps that mean one thing
const STILL = 12; // pixels within which a finger has not moved
const CLOSEST = 2; // of the axis: more is no picture any more

// `view`, all in the axis' own numbers: shown() and whole() → [from, to], edges() → [left, right] on the screen in
// pixels, show(from, to) while fingers move, done(from, to) when they leave, done(null, null) for all of it.
export function pinchable(element, view, signal) {
  let held = null; // where the fingers are on the axis, which it is to keep them on
  let moved = null; // [from, to] by these fingers
  let tapped = { at: -TAPS, x: 0 };
  let begun = null;

  const valueAt = (x, [from, to]) => {
    const [left, right] = view.edges();
    return from + ((x - left) / (right - left)) * (to - from);
  };

  function hold(touches) {
    const range = moved ?? view.shown();
    held = [...touches].slice(0, 2).map((touch) => valueAt(touch.clientX, range));
  }

  // The range that has each finger where it was put down.
  function rangeOf(touches) {
    const [left, right] = view.edges();
    const places = [...touches].slice(0, 2).map((touch) => (touch.clientX - left) / (right - left));
    const [from, to] = moved ?? view.shown();
    let span = to - from;
    if (places.length > 1 && Math.abs(places[1] - places[0]) > 0.02) span = Math.abs((held[1] - held[0]) / (places[1] - places[0]));
    const [first, last] = view.whole();
    span = Math.min(last - first, Math.max(CLOSEST, span));
    const begins = Math.min(last - span, Math.max(first, held[0] - places[0] * span));
    return [begins, begins + span];
  }

  const isWhole = ([from, to]) => {
    const [first, last] = view.whole();
    return to - from >= 0.999 * (last - first);
  };

  element.addEventListener('touchstart', (event) => {
    begun = event.touches.length === 1 ? { at: event.timeStamp, x: event.touches[0].clientX, y: event.touches[0].clientY } : null;
    hold(event.touches);
    if (event.touches.length > 1) event.preventDefault();
  }, { signal, passive: false });

  element.addEventListener('touchmove', (event) => {
    if (!held) return;
    const { touches } = event;
    if (touches.length === 1) {
      if (isWhole(moved ?? view.shown())) return; // there is nowhere to go
      if (begun && Math.abs(touches[0].clientX - begun.x) < STILL) return;
    }
    begun = null;
    event.preventDefault();
    moved = rangeOf(touches);
    view.show(...moved);
  }, { signal, passive: false });

  element.addEventListener('touchend', (event) => {
    if (event.touches.length) {
      hold(event.touches); // one finger goes on with what two began
      return;
    }
    const last = event.changedTouches[0];
    if (moved) view.done(...(isWhole(moved) ? [null, null] : moved));
    else if (begun && Math.hypot(last.clientX - begun.x, last.clientY - begun.y) < STILL) {
      const again = event.timeStamp - tapped.at < TAPS && Math.abs(last.clientX - tapped.x) < 3 * STILL;
      tapped = again ? { at: -TAPS, x: 0 } : { at: event.timeStamp, x: last.clientX };
      if (again) view.done(null, null);
    }
    held = null;
    moved = null;
  }, { signal });

  element.addEventListener('touchcancel', () => { // the browser scrolls the page with it
    if (moved) view.done(...moved);
    held = null;
    moved = null;
  }, { signal });
}
