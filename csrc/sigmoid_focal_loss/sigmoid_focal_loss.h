#pragma once
// Sigmoid focal loss (Lin et al., 2017) of one logit and its derivative, shared by CPU, CUDA and emulator.
//
// With p = sigmoid(x), q = p (1 - t) + (1 - p) t the share that is wrong, w = alpha t + (1 - alpha) (1 - t):
//
//   loss     = w q^gamma ce,   ce = -t log(p) - (1 - t) log(1 - p) = log(1 + e^-|x|) + |x| (x > 0 ? 1 - t : t)
//   gradient = w (q^gamma (p - t) + gamma q^(gamma - 1) (1 - 2 t) p (1 - p) ce)
//
// Nothing is computed as one minus something close to one: 1 - p and p - t keep their last bits for any logit.
#include <cmath>
#include <cstdint>

#include "../portable.h"

namespace mrcnn {

template <typename T>
struct Focal {
  T alpha, gamma;  // alpha < 0: classes are not weighted
};

template <typename T>
struct Sigmoid {
  T p, rest, e;  // sigmoid(x), 1 - sigmoid(x), e^-|x|
};

template <typename T>
HOST_DEVICE Sigmoid<T> sigmoid_of(T x) {
  const T e = std::exp(-std::fabs(x));
  const T large = T(1) / (T(1) + e), small = e * large;
  return x >= T(0) ? Sigmoid<T>{large, small, e} : Sigmoid<T>{small, large, e};
}

template <typename T>
HOST_DEVICE T cross_entropy(T x, T target, T e) {
  const T wrong = x > T(0) ? T(1) - target : target;
  const T linear = wrong == T(0) ? T(0) : wrong * std::fabs(x);  // an infinite logit that is right costs nothing
  return std::log1p(e) + linear;
}

template <typename T>
HOST_DEVICE T class_weight(T target, const Focal<T>& focal) {
  return focal.alpha < T(0) ? T(1) : focal.alpha * target + (T(1) - focal.alpha) * (T(1) - target);
}

template <typename T>
HOST_DEVICE T focal_loss(T x, T target, const Focal<T>& focal) {
  const Sigmoid<T> sigmoid = sigmoid_of(x);
  const T wrong = sigmoid.p * (T(1) - target) + sigmoid.rest * target;
  const T power = focal.gamma == T(2) ? wrong * wrong : std::pow(wrong, focal.gamma);
  return class_weight(target, focal) * power * cross_entropy(x, target, sigmoid.e);
}

template <typename T>
HOST_DEVICE T focal_loss_gradient(T x, T target, const Focal<T>& focal) {
  const Sigmoid<T> sigmoid = sigmoid_of(x);
  const T p = sigmoid.p, rest = sigmoid.rest;
  const T wrong = p * (T(1) - target) + rest * target;
  const T power = focal.gamma == T(2) ? wrong * wrong : std::pow(wrong, focal.gamma);
  const T slope = power * (p * (T(1) - target) - rest * target), both = p * rest;
  T bend = T(0);
  if (both != T(0) && focal.gamma != T(0)) {
    const T lower = focal.gamma == T(2) ? wrong * both : wrong != T(0) ? power * (both / wrong) : T(0);
    bend = focal.gamma * lower * (T(1) - T(2) * target) * cross_entropy(x, target, sigmoid.e);
  }
  return class_weight(target, focal) * (slope + bend);
}

// How the losses of a call leave it.
enum class Reduction { kNone, kMean, kSum };

// CUDA: targets are [count] in the type of the logits, or labels: int64, one for `classes` logits in a row, where
// `classes` itself is the background and less than zero means that the row counts for nothing. Anything above gives
// NaN.
struct FocalCall {
  int64_t count, classes;  // logits in all; in a row of labels, or 0: no labels
  double alpha, gamma;
  Reduction reduction;
};

// `losses` is [count], or one number for a reduction, for which `partial` has to hold focal_loss_blocks(count) numbers.
int64_t focal_loss_blocks(int64_t count);
enum class FocalType { kFloat, kDouble, kHalf, kBFloat16 };
const char* launch_focal_loss(FocalType type, const FocalCall& call, const void* logits, const void* targets,
                              double* partial, void* losses, void* stream);
// `gradient` is of the result: [count], or one number for a reduction.
const char* launch_focal_loss_backward(FocalType type, const FocalCall& call, const void* logits, const void* targets,
                                       const void* gradient, void* logits_gradient, void* stream);

}  // namespace mrcnn
