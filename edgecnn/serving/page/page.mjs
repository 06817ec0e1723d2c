// The page: takes an image or a drawing, has it answered where the user wants, and shows the answer.

import { BrowserModel, ranked } from './browser.mjs';
import { compare } from './compare.mjs';
import { Paper } from './draw.mjs';
import { Problem, TokenWanted, getJson, keepToken, predict } from './server.mjs';
import { answerCard, drawPixels, percent } from './show.mjs';

const $ = (id) => document.getElementById(id);
const chosen = (name) => document.querySelector(`input[name="${name}"]:checked`).value;

let manifest, about, model, paper;
let picked = null; // the image file of the last choice, drop or paste

async function start() {
  tell(null);
  try {
    [manifest, about] = await Promise.all([getJson('bundle/manifest.json'), getJson('bundle/browser.json')]);
  } catch (error) {
    fail(error);
    return;
  }
  model = new BrowserModel(manifest, about);
  describe();
  paper ??= new Paper($('paper'), manifest.preprocess, refresh);
  const centered = about.share !== null;
  paper.set({ dark: about.dark, centered, share: about.share ?? 1 });
  $('center').checked = centered;
  $('center-choice').hidden = !centered;
  $('dark').checked = about.dark;
  $('pen').max = 2 * paper.pen;
  $('pen').value = paper.pen;
  $('entry').hidden = true;
  $('main').hidden = false;
}

function describe() {
  const { name, labels, preprocess } = manifest;
  const colour = preprocess.channels === 1 ? 'grey' : 'colour';
  document.title = `${name} · edgecnn`;
  $('name').textContent = name;
  $('about').textContent = `${labels.length} classes, images of ${preprocess.width}×${preprocess.height} in ${colour}`;
  $('ground-note').textContent = `The images this net was made with have a ${about.dark ? 'dark' : 'light'} ground.`;
  $('artifact').replaceChildren(...about.artifacts.map(({ name: artifact }) => new Option(artifact)));
  const same = about.artifacts.find(({ name: artifact }) => artifact === about.server?.artifact);
  if (same) $('artifact').value = same.name;
  if (about.problem) serverOnly(about.problem);
}

// The problem ends with the command that solves it, where there is one.
function serverOnly(problem) {
  const [, why, command] = problem.match(/^(.*?)(?:: (npm .*))?$/s);
  for (const place of document.querySelectorAll('input[name="place"]')) place.disabled = place.value !== 'server';
  $('missing').hidden = false;
  $('why').textContent = `The model cannot run in this browser: ${why}.`;
  $('remedy').hidden = !command;
  $('install').textContent = command ?? '';
}

// Runs one after the other; while one runs, only the last wish is kept.
let running = false;
let wanted = false;
async function refresh() {
  wanted = true;
  if (running) return;
  running = true;
  $('answers').setAttribute('aria-busy', 'true');
  const slow = setTimeout(() => $('answers').classList.add('busy'), 150);
  while (wanted) {
    wanted = false;
    await answer().catch(fail);
  }
  clearTimeout(slow);
  $('answers').classList.remove('busy');
  $('answers').setAttribute('aria-busy', 'false');
  running = false;
}

async function answer() {
  const input = await current();
  tell(null);
  if (!input) {
    clear();
    return;
  }
  const [place, threshold] = [chosen('place'), limit()];
  const server = place === 'browser' ? null : await settled(predict(input.blob, manifest.labels.length, threshold));
  const prepared = await settled(model.prepare(input.blob, input.name));
  preview(prepared.value, input);
  const browser = place === 'server' ? null : await settled(inBrowser(prepared, threshold));
  const sides = [['Server', onServer(), server], ['This browser', `${$('artifact').value} on onnxruntime-web`, browser]];
  const failed = sides.map(([, , side]) => side?.error).find(Boolean);
  if (failed) fail(failed);
  const good = sides.filter(([, , side]) => side?.value);
  $('answers').replaceChildren(...good.map(([title, what, side]) => answerCard(title, what, side.value)));
  await verdict(server?.value, browser?.value, prepared.value, threshold);
  $('status').textContent = [
    ...good.map(([title, , { value }]) => `${title}: ${value.label}, ${percent(value.probability)}.`), $('agreement').textContent,
  ].join(' ');
}

async function inBrowser(prepared, threshold) {
  if (prepared.error) throw prepared.error;
  const { probabilities, ms } = await model.run($('artifact').value, prepared.value.pixels);
  const top = ranked(manifest.labels, probabilities);
  const [{ label, probability }] = top;
  const { decode, preprocess } = prepared.value.ms;
  const times = { decode, preprocess, inference: ms, total: decode + preprocess + ms };
  return { label: probability >= threshold ? label : 'unknown', probability, top, ms: times };
}

async function verdict(server, browser, prepared, threshold) {
  $('agreement').hidden = true;
  $('agreement').textContent = '';
  if (!server || !browser) return;
  const again = () => predict(model.file(prepared.pixels), manifest.labels.length, threshold);
  const { agree, text } = await compare(server, browser, again);
  $('agreement').textContent = text;
  $('agreement').className = agree ? 'yes' : 'no';
  $('agreement').hidden = false;
}

// Waits for a promise and gives its value or its error, so that one side's trouble does not take the other's answer.
async function settled(promise) {
  try {
    return { value: await promise };
  } catch (error) {
    return { error };
  }
}

async function current() {
  if (chosen('source') === 'image') return picked && { blob: picked, name: picked.name || 'the image' };
  return paper.isEmpty ? null : { blob: await paper.file(), name: 'the drawing' };
}

function onServer() {
  return about.server ? `${about.server.artifact} on ${about.server.runtime}` : '';
}

function limit() {
  const value = Number($('threshold').value);
  return Number.isFinite(value) ? Math.max(0, Math.min(1, value)) : 0;
}

function preview(prepared, { name }) {
  const isFile = chosen('source') === 'image';
  $('preview').hidden = !prepared;
  $('seen').hidden = !prepared;
  $('file-name').hidden = !isFile;
  $('file-name').textContent = name;
  if (!prepared) return;
  const { image, pixels } = prepared;
  Object.assign($('preview'), { width: image.preview.width, height: image.preview.height });
  $('preview').className = Math.max(image.width, image.height) < 128 ? 'tiny' : '';
  $('preview').getContext('2d').drawImage(image.preview, 0, 0);
  if (isFile) $('file-name').textContent = `${name}, ${image.width}×${image.height}`;
  drawPixels($('seen-pixels'), pixels, manifest.preprocess);
  $('seen-note').textContent = `What the net sees: ${manifest.preprocess.width}×${manifest.preprocess.height} pixels`;
}

function clear() {
  const waiting = Object.assign(document.createElement('p'), { className: 'note', textContent: 'The answer appears here.' });
  $('answers').replaceChildren(waiting);
  for (const id of ['agreement', 'seen', 'preview', 'file-name']) $(id).hidden = true;
  $('status').textContent = '';
}

function fail(error) {
  if (!(error instanceof Problem)) console.error(error);
  tell(error instanceof Problem ? error.message : `This page has a fault: ${error?.message ?? error}`);
  if (!(error instanceof TokenWanted)) return;
  $('entry').hidden = false;
  $('about').textContent = '';
  $('token').focus();
}

function tell(text) {
  $('problem').hidden = !text;
  $('problem').textContent = text ?? '';
}

function take(files) {
  const file = [...files].find(({ type }) => type.startsWith('image/')) ?? files[0];
  if (!file) {
    tell('That holds no file: drop or paste an image file.');
    return;
  }
  picked = file;
  document.querySelector('input[name="source"][value="image"]').checked = true;
  source();
}

function source() {
  const drawing = chosen('source') === 'draw';
  $('image-panel').hidden = drawing;
  $('draw-panel').hidden = !drawing;
  refresh();
}

function listen() {
  $('entry').addEventListener('submit', (event) => {
    event.preventDefault();
    keepToken($('token').value.trim());
    start().then(() => manifest && refresh());
  });
  $('file').addEventListener('change', () => {
    if ($('file').files.length) take($('file').files);
    $('file').value = ''; // so that the same file, changed, can be chosen again
  });
  $('source').addEventListener('change', source);
  for (const id of ['place', 'threshold', 'artifact']) $(id).addEventListener('change', refresh);
  $('clear').addEventListener('click', () => paper.clear());
  $('pen').addEventListener('input', () => { paper.pen = Number($('pen').value); });
  $('dark').addEventListener('change', () => paper.set({ dark: $('dark').checked }));
  $('center').addEventListener('change', () => paper.set({ centered: $('center').checked }));
  document.addEventListener('paste', (event) => {
    if (event.clipboardData.files.length && manifest) take(event.clipboardData.files);
  });
  document.addEventListener('dragover', (event) => {
    event.preventDefault();
    document.body.classList.add('over');
  });
  document.addEventListener('dragleave', (event) => {
    if (!event.relatedTarget) document.body.classList.remove('over');
  });
  document.addEventListener('drop', (event) => {
    event.preventDefault();
    document.body.classList.remove('over');
    if (manifest) take(event.dataTransfer.files);
  });
}

listen();
start();
