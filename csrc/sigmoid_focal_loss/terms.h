// Losses and gradients of a vector of logits. Compiled once for each width of vectors (see ../vectors.h).

// What loss and gradient share, as in sigmoid_focal_loss.h.
struct Terms {
  Floats p, rest, right;   // sigmoid, one minus it, one minus the target
  Floats wrong, power;     // q and q^gamma
  Floats weight, entropy;  // of the class, cross entropy
};

// False if any of the logits is infinite, huge or NaN or, where powers are taken, any of the shares so small or
// negative that pow_unit has no answer: the plain functions have one.
template <Gamma kGamma>
inline bool terms_of(Floats x, Floats t, Focal<float> focal, Terms& terms) {
  const Floats one = broadcast(1.f), size = as_floats(as_ints(x) & 0x7fffffff);
  Mask fits = below(size, broadcast(1e30f));
  const Floats e = exp_negative(-size);
  const Floats large = one / (one + e), small = e * large;
  terms.p = by_sign(x, small, large);
  terms.rest = by_sign(x, large, small);
  terms.right = one - t;
  terms.wrong = fused(terms.p, terms.right, terms.rest * t);
  terms.entropy = fused(size, by_sign(x, t, terms.right), log1p_unit(e));
  terms.weight = fused(broadcast(focal.alpha < 0 ? 1.f : focal.alpha), t,
                       broadcast(focal.alpha < 0 ? 1.f : 1.f - focal.alpha) * terms.right);
  if constexpr (kGamma == Gamma::kZero) {
    terms.power = one;
  } else if constexpr (kGamma == Gamma::kOne) {
    terms.power = terms.wrong;
  } else if constexpr (kGamma == Gamma::kTwo) {
    terms.power = terms.wrong * terms.wrong;
  } else {
    fits &= below(broadcast(1.2e-38f), terms.wrong) & below(terms.wrong, broadcast(1.5f));
    terms.power = pow_unit(terms.wrong, broadcast(focal.gamma));
  }
  return all(fits);
}

template <Gamma kGamma>
inline bool losses_of(Floats x, Floats t, Focal<float> focal, Floats& losses) {
  Terms terms;
  const bool fits = terms_of<kGamma>(x, t, focal, terms);
  losses = terms.weight * terms.power * terms.entropy;
  return fits;
}

template <Gamma kGamma>
inline bool gradients_of(Floats x, Floats t, Focal<float> focal, Floats& gradients) {
  Terms terms;
  const bool fits = terms_of<kGamma>(x, t, focal, terms);
  const Floats difference = fused(terms.p, terms.right, -(terms.rest * t));
  Floats sum = terms.power * difference;
  if constexpr (kGamma != Gamma::kZero) {
    Floats lower = terms.p * terms.rest;
    if constexpr (kGamma == Gamma::kTwo) lower = lower * terms.wrong;
    if constexpr (kGamma == Gamma::kAny) lower = terms.power * (lower / terms.wrong);
    lower = lower * (broadcast(focal.gamma) * (terms.right - t));
    sum = fused(lower, terms.entropy, sum);
  }
  gradients = terms.weight * sum;
  return fits;
}
