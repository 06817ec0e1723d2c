// Do the server and the browser agree, and where they differ, is it the decoder or the model?

// Gives `{ agree, text }`. `server` and `browser` are whole answers; `again` gives the server's answer to the very pixels
// that the browser computed from, and is asked only where the two differ.
export async function compare(server, browser, again) {
  const agree = server.label === browser.label;
  const verdict = agree ? `They agree: ${server.label}.` : `They disagree: the server says ${server.label}, this browser ${browser.label}.`;
  const apart = distance(server, browser);
  if (apart === 0) return { agree, text: `${verdict} Every probability is the same to the bit.` };
  return { agree, text: `${verdict} Probabilities differ by at most ${written(apart)}. ${reason(server, browser, await again())}` };
}

function reason(server, browser, same) {
  if (distance(server, same) === 0) return 'Both had the same pixels.';
  const left = distance(same, browser);
  const rest = left === 0 ? 'no difference is left' : `${written(left)} is left`;
  return `They decode the image differently: on this browser's pixels ${rest}.`;
}

// The largest difference of a class's probability.
function distance(one, other) {
  const known = new Map(one.top.map(({ label, probability }) => [label, probability]));
  return Math.max(...other.top.map(({ label, probability }) => Math.abs(probability - known.get(label))));
}

// With a minus sign, at which no line breaks.
function written(value) {
  return value.toExponential(1).replace('-', '−');
}
