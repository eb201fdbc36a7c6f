// Sigmoid focal loss, emulated.
#include "emulated.h"
// The emulator must come first.
#include "../../csrc/sigmoid_focal_loss/sigmoid_focal_loss.h"

namespace {

mrcnn::FocalCall call_of(int64_t count, int64_t classes, double alpha, double gamma, int64_t reduction) {
  return {count, classes, alpha, gamma, static_cast<mrcnn::Reduction>(reduction)};
}

}  // namespace

extern "C" {

const char* focal_loss(int64_t type, int64_t count, int64_t classes, double alpha, double gamma, int64_t reduction,
                       const void* logits, const void* targets, void* losses) {
  std::vector<double> partial(mrcnn::focal_loss_blocks(count), NAN);  // what is not written must not be read
  return emulated::guarded([&] {
    return mrcnn::launch_focal_loss(static_cast<mrcnn::FocalType>(type),
                                    call_of(count, classes, alpha, gamma, reduction), logits, targets, partial.data(),
                                    losses, nullptr);
  });
}

const char* focal_loss_backward(int64_t type, int64_t count, int64_t classes, double alpha, double gamma,
                                int64_t reduction, const void* logits, const void* targets, const void* gradient,
                                void* out) {
  return emulated::guarded([&] {
    return mrcnn::launch_focal_loss_backward(static_cast<mrcnn::FocalType>(type),
                                             call_of(count, classes, alpha, gamma, reduction), logits, targets,
                                             gradient, out, nullptr);
  });
}

}  // extern "C"

namespace {

template <typename T>
void run_type(int64_t type, int64_t rows, int64_t classes) {
  std::vector<T> logits(rows * classes), dense(rows * classes), out(rows * classes);
  std::vector<int64_t> labels;
  for (int64_t row = 0; row < rows; ++row) labels.push_back(row % (classes + 3) - 1);  // -1 up to one too many
  labels.shrink_to_fit();
  for (const int64_t reduction : {0, 1, 2}) {
    std::vector<T> losses(reduction == 0 ? rows * classes : 1), upstream(losses.size());
    for (const bool labelled : {false, true}) {
      const void* targets = labelled ? static_cast<const void*>(labels.data()) : dense.data();
      emulated::expect("focal_loss", focal_loss(type, rows * classes, labelled ? classes : 0, 0.25, 1.5, reduction,
                                                logits.data(), targets, losses.data()));
      emulated::expect("focal_loss backward",
                       focal_loss_backward(type, rows * classes, labelled ? classes : 0, 0.25, 2, reduction,
                                           logits.data(), targets, upstream.data(), out.data()));
    }
  }
}

void run() {
  run_type<float>(0, 7, 5);
  run_type<float>(0, 31, 80);
  run_type<double>(1, 3, 3);
  run_type<uint16_t>(2, 257, 1);
  run_type<uint16_t>(3, 1, 600);
}

const emulated::Sanitized sanitized(run);

}  // namespace
