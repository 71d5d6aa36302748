"""llama.cpp's quantised blocks as loops over bytes, float64; after ggml's structs, importing nothing of theirs or ours.

Q4_0   d (f16), 16 bytes: byte i holds q of i (low half) and of i + 16 (high half); x = d (q - 8)
Q4_1   d, m (f16), 16 bytes as Q4_0; x = d q + m
Q5_0   d (f16), 4 bytes of high bits, 16 bytes as Q4_0; bit i of the 32 high bits is 16 of q i; x = d (q - 16)
Q5_1   d, m (f16), then as Q5_0; x = d q + m
Q8_0   d (f16), 32 int8; x = d q
Q4_K   d, dmin (f16), 12 bytes of eight 6-bit scales and mins, 128 bytes; x = d sc q - dmin mn
Q6_K   128 bytes ql, 64 bytes qh, 16 int8 scales, d (f16); x = d sc (q - 32)
"""

import struct

import numpy as np

BLOCK = {
    "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22), "Q5_1": (32, 24), "Q8_0": (32, 34), "Q4_K": (256, 144),
    "Q6_K": (256, 210),
}  # fmt: skip


def _half(data: bytes, at: int) -> float:
    return struct.unpack_from("<e", data, at)[0]


def _q4(data: bytes, at: int) -> list[int]:
    return [byte & 15 for byte in data[at : at + 16]] + [byte >> 4 for byte in data[at : at + 16]]


def _q5(data: bytes, at: int) -> list[int]:
    high = struct.unpack_from("<I", data, at)[0]
    return [low + 16 * ((high >> i) & 1) for i, low in enumerate(_q4(data, at + 4))]


def _q4_k(data: bytes) -> list[float]:
    d, dmin, s, values = _half(data, 0), _half(data, 2), data[4:16], []
    for j in range(8):
        if j < 4:
            scale, least = s[j] & 63, s[j + 4] & 63
        else:
            scale = (s[j + 4] & 15) | ((s[j - 4] >> 6) << 4)
            least = (s[j + 4] >> 4) | ((s[j] >> 6) << 4)
        for byte in data[16 + 32 * (j // 2) : 48 + 32 * (j // 2)]:
            q = byte & 15 if j % 2 == 0 else byte >> 4
            values.append(d * scale * q - dmin * least)
    return values


def _q6_k(data: bytes) -> list[float]:
    ql, qh, scales, d = data[:128], data[128:192], struct.unpack("<16b", data[192:208]), _half(data, 208)
    values = [0.0] * 256
    for half in range(2):
        for i in range(32):
            low, high = ql[64 * half + i], ql[64 * half + i + 32]
            bits = qh[32 * half + i]
            quarters = [low & 15, high & 15, low >> 4, high >> 4]
            for k in range(4):
                q = (quarters[k] | (((bits >> (2 * k)) & 3) << 4)) - 32
                place = 128 * half + 32 * k + i
                values[place] = d * scales[place // 16] * q
    return values


def dequantise(rows: np.ndarray, kind: str) -> np.ndarray:
    """uint8 [rows, bytes] -> float64 [rows, values]."""
    size = BLOCK[kind][1]
    out = []
    for row in rows:
        values: list[float] = []
        for start in range(0, len(row), size):
            block = row[start : start + size].tobytes()
            if kind == "Q4_0":
                values += [_half(block, 0) * (q - 8) for q in _q4(block, 2)]
            elif kind == "Q4_1":
                values += [_half(block, 0) * q + _half(block, 2) for q in _q4(block, 4)]
            elif kind == "Q5_0":
                values += [_half(block, 0) * (q - 16) for q in _q5(block, 2)]
            elif kind == "Q5_1":
                values += [_half(block, 0) * q + _half(block, 2) for q in _q5(block, 4)]
            elif kind == "Q8_0":
                values += [_half(block, 0) * q for q in struct.unpack("<32b", block[2:])]
            else:
                values += _q4_k(block) if kind == "Q4_K" else _q6_k(block)
        out.append(values)
    return np.array(out)
