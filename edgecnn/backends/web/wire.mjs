// Messages between Python and JavaScript: lengths, a JSON header, and the tensors' raw bytes behind it.
// edgecnn/backends/web_wire.py is the other end.

export const PREFIX = 12; // bytes of the header (uint32) and of all tensors together (uint64), little-endian

const ARRAYS = {
  float32: Float32Array, float64: Float64Array, float16: Uint16Array, bool: Uint8Array,
  uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, uint64: BigUint64Array,
  int8: Int8Array, int16: Int16Array, int32: Int32Array, int64: BigInt64Array,
};

// Returns the bytes of the whole message that begins here.
export function lengthOf(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, PREFIX);
  return PREFIX + view.getUint32(0, true) + Number(view.getBigUint64(4, true));
}

// Returns the header; each of its tensors has got `data`, a typed array of its own.
export function unpack(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, PREFIX);
  let start = PREFIX + view.getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(PREFIX, start)));
  for (const tensor of header.tensors) {
    const kind = known(tensor.dtype);
    const end = start + tensor.shape.reduce((product, size) => product * size, kind.BYTES_PER_ELEMENT);
    // A Uint8Array's slice is a copy that begins at 0, which typed arrays of wider numbers need.
    tensor.data = new kind(Uint8Array.prototype.slice.call(bytes, start, end).buffer);
    start = end;
  }
  return header;
}

// Writes a message: `tensors` are objects with name, dtype, shape and data, a typed array.
export function pack(header, tensors) {
  const listed = tensors.map(({ name, dtype, shape }) => ({ name, dtype, shape }));
  const text = new TextEncoder().encode(JSON.stringify({ ...header, tensors: listed }));
  const size = tensors.reduce((sum, { data }) => sum + data.byteLength, 0);
  const bytes = new Uint8Array(PREFIX + text.length + size);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, text.length, true);
  view.setBigUint64(4, BigInt(size), true);
  bytes.set(text, PREFIX);
  let start = PREFIX + text.length;
  for (const { dtype, data } of tensors) {
    known(dtype);
    bytes.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), start);
    start += data.byteLength;
  }
  return bytes;
}

export function known(dtype) {
  if (!Object.hasOwn(ARRAYS, dtype)) throw new Error(`tensors of ${dtype} cannot be fed from numpy`);
  return ARRAYS[dtype];
}
