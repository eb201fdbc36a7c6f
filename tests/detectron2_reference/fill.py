"""Deterministic parameter fill used for the Detectron2 reference numbers.

Needs numpy only.  Every tensor of a model's state dict is a function of

    (salt, name, shape)  ->  float32 array

plus two small per-model tables, ``gains`` (scalar multipliers) and
``vectors`` (a few bias vectors given literally), both stored in
``models/<name>.json`` under ``"fill"``.

Rule, in order (first match wins); ``z`` is ``size`` standard normals drawn
in C order from ``numpy.random.Generator(numpy.random.PCG64(seed))`` in
float64, ``seed = crc32((salt + name).encode("utf-8"))``:

  name in vectors              the literal vector
  *num_batches_tracked         int64 zeros
  *running_var                 exp(0.2 z)
  *running_mean                0.1 z
  *.weight with ndim 1 (norm)  1 + 0.1 z
  *.norm.bias                  0.1 z
  *.bias                       0.05 z
  ndim >= 2 weight             w = z; subtract from each output filter its mean
                               over the fan-in; w * base / sqrt(fan_in)

``fan_in`` is prod(shape[1:]) except for the two transposed convolutions
(names containing ``.deconv.`` or ``.score_lowres.``), whose layout is
(in, out, kh, kw): there the mean is taken over axes (0, 2, 3) and
fan_in = shape[0] * kh * kw / 4 (they have stride 2).
``base`` is sqrt(2), or 0.6 for ``*.conv3.weight`` inside the bottom-up
network (the last convolution of a bottleneck, so that residual sums stay
bounded).  Finally the result is multiplied by ``gains.get(name, 1)`` in
float64 and rounded once to float32.
"""

import json
import zlib

import numpy as np


def seed_of(name, salt=""):
    return zlib.crc32((salt + name).encode("utf-8")) & 0xFFFFFFFF


def _normals(name, shape, salt):
    rng = np.random.Generator(np.random.PCG64(seed_of(name, salt)))
    size = int(np.prod(shape, dtype=np.int64)) if len(shape) else 1
    return rng.standard_normal(size, dtype=np.float64).reshape(shape)


def fill(name, shape, salt="", gains=None, vectors=None):
    """Value of one state-dict entry as a numpy array."""
    shape = tuple(int(s) for s in shape)
    gains = gains or {}
    vectors = vectors or {}
    if name in vectors:
        v = np.asarray(vectors[name], dtype=np.float32)
        if v.shape != shape:
            raise ValueError(f"{name}: vector {v.shape} does not fit {shape}")
        return v
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    z = _normals(name, shape, salt)
    if name.endswith("running_var"):
        w = np.exp(0.2 * z)
    elif name.endswith("running_mean"):
        w = 0.1 * z
    elif name.endswith(".weight") and len(shape) == 1:
        w = 1.0 + 0.1 * z
    elif name.endswith(".norm.bias"):
        w = 0.1 * z
    elif name.endswith(".bias"):
        w = 0.05 * z
    elif len(shape) >= 2:
        if ".deconv." in name or ".score_lowres." in name:
            axes, fan_in = (0, 2, 3), shape[0] * shape[2] * shape[3] / 4.0
        else:
            axes, fan_in = tuple(range(1, len(shape))), float(np.prod(shape[1:]))
        base = np.sqrt(2.0)
        if name.endswith(".conv3.weight"):
            base = 0.6
        w = (z - z.mean(axis=axes, keepdims=True)) * (base / np.sqrt(fan_in))
    else:
        raise ValueError(f"no rule for {name} {shape}")
    return (w * float(gains.get(name, 1.0))).astype(np.float32)


def fill_from_json(path_or_dict):
    """All tensors of a model: dict name -> numpy array, in state-dict order."""
    spec = path_or_dict
    if not isinstance(spec, dict):
        with open(spec) as f:
            spec = json.load(f)
    f = spec["fill"]
    return {e["name"]: fill(e["name"], e["shape"], f["salt"], f["gains"], f["vectors"]) for e in spec["state_dict"]}


def sample_indices(n, k=200):
    """The fixed sample of a flattened (C order) tensor with n entries."""
    return (np.arange(k, dtype=np.int64) * 2654435761 + 12345) % int(n)


def probe(a):
    """Short fingerprint: crc32 of the bytes, first, last, sum of |a| in float64."""
    a = np.ascontiguousarray(a)
    flat = a.reshape(-1)
    return {
        "crc32": zlib.crc32(a.tobytes()) & 0xFFFFFFFF,
        "first": float(flat[0]),
        "last": float(flat[-1]),
        "abssum": float(np.abs(flat.astype(np.float64)).sum()),
    }
