// Exponentials and logarithms of a vector of floats. No header of its own: it is compiled once for each width of
// vectors (see vectors.h), and does the same to a number whatever the width. Polynomials were fitted at Chebyshev
// points; the errors stated are the largest ones found against float64.

inline Floats as_floats(Ints bits) {
  return reinterpret_cast<Floats>(bits);
}
inline Ints as_ints(Floats bits) {
  return reinterpret_cast<Ints>(bits);
}
// Of whole numbers.
inline Ints whole(Floats numbers) {
  return __builtin_convertvector(numbers, Ints);
}

// e^r for |r| <= log(2) / 2.
inline Floats exp_near_zero(Floats r) {
  Floats sum = broadcast(1.39485830e-3f);
  sum = fused(sum, r, broadcast(8.33326609e-3f));
  sum = fused(sum, r, broadcast(4.16664075e-2f));
  sum = fused(sum, r, broadcast(1.66666662e-1f));
  sum = fused(sum, r, broadcast(0.5f));
  sum = fused(sum, r, broadcast(1.f));
  return fused(sum, r, broadcast(1.f));
}

// value * 2^n for whole n in [-252, 0]: two factors, because 2^-126 is the smallest that bits are put together for.
inline Floats scaled_down(Floats value, Ints n) {
  const Ints half = n >> 1;
  return value * as_floats((half + 127) << 23) * as_floats((n - half + 127) << 23);
}

// e^y for finite y <= 0, with denormal results.
inline Floats exp_negative(Floats y) {
  y = larger(y, broadcast(-104.f));  // below it rounds to zero
  const Floats n = rounded(y * broadcast(1.44269504f));
  // log(2) in two parts, the first with few enough bits for exact products
  Floats r = fused(-n, broadcast(0.693359375f), y);
  r = fused(-n, broadcast(-2.12194440e-4f), r);
  return scaled_down(exp_near_zero(r), whole(n));
}

// log(1 + e) for e in [0, 1]: 2 atanh(e / (2 + e)), which loses nothing where e is small.
inline Floats log1p_unit(Floats e) {
  const Floats s = e / (e + broadcast(2.f)), z = s * s;
  Floats sum = broadcast(0.14087329f);
  sum = fused(sum, z, broadcast(0.13980709f));
  sum = fused(sum, z, broadcast(0.20012427f));
  sum = fused(sum, z, broadcast(0.33333158f));
  const Floats twice = s + s;
  return fused(twice * z, sum, twice);
}

// q^power for normal q in (0, 1] and 0 <= power <= 64. The logarithm's whole and fractional part are multiplied by
// themselves, so that the error does not grow with the size of the logarithm.
inline Floats pow_unit(Floats q, Floats power) {
  const Ints bits = as_ints(q);
  // The exponent that leaves a mantissa in [sqrt(1/2), sqrt(2)).
  const Ints exponent = (bits - 0x3f3504f3) >> 23;
  const Floats f = as_floats(bits - (exponent << 23)) - broadcast(1.f);
  const Floats s = f / (f + broadcast(2.f)), z = s * s;
  Floats sum = broadcast(0.1496422f);
  sum = fused(sum, z, broadcast(0.19987347f));
  sum = fused(sum, z, broadcast(0.33333408f));
  const Floats twice = s + s, log2_m = fused(twice * z, sum, twice) * broadcast(1.44269504f);
  const Floats exact = __builtin_convertvector(exponent, Floats);
  const Floats product = power * exact, lost = fused(power, exact, -product);
  const Floats rest = fused(power, log2_m, lost);
  const Floats n = larger(rounded(product + rest), broadcast(-252.f));
  Floats r = product - n + rest;
  r = larger(r, broadcast(-0.5f));  // only where the result is zero anyway
  const Ints scale = whole(n);
  return scaled_down(exp_near_zero(r * broadcast(0.693147181f)), scale < 0 ? scale : Ints{});
}
