// The Python module: how the kernels were built, and COCO's compressed run lengths. No Torch header here, so pybind11
// and the stable ABI never meet in one translation unit.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

namespace py = pybind11;

namespace {

// COCO writes run lengths as text. From the third one on, a number is stored as its difference to the one two places
// before (runs of the same colour tend to be alike). Each number is split into groups of five bits, lowest first; a
// character is 48 + group, plus 32 if more groups follow; bit 4 of the last group is the sign.
constexpr int kBitsPerCharacter = 5;
constexpr int kMaximumGroups = 7;  // 35 bits hold the difference of any two 32-bit counts

py::bytes rle_counts(const py::bytes& compressed) {
  const std::string_view text = compressed;
  std::vector<uint32_t> runs;
  runs.reserve(text.size());
  size_t position = 0;
  while (position < text.size()) {
    int64_t value = 0;
    bool more = true;
    for (int group = 0; more; ++group) {
      if (position == text.size()) throw py::value_error("run lengths end in the middle of a number");
      const int code = static_cast<unsigned char>(text[position]) - 48;
      if (code < 0 || code > 63) {
        throw py::value_error("run lengths hold a byte that is no part of a number, at position " +
                              std::to_string(position));
      }
      if (group == kMaximumGroups) throw py::value_error("run lengths hold a number of more than 32 bits");
      ++position;
      value |= static_cast<int64_t>(code & 31) << (kBitsPerCharacter * group);
      more = (code & 32) != 0;
      if (!more && (code & 16) != 0) value |= -(int64_t{1} << (kBitsPerCharacter * (group + 1)));
    }
    if (runs.size() > 2) value += runs[runs.size() - 2];
    if (value < 0 || value > std::numeric_limits<uint32_t>::max()) {
      throw py::value_error("run " + std::to_string(runs.size()) + " has the impossible length " +
                            std::to_string(value));
    }
    runs.push_back(static_cast<uint32_t>(value));
  }
  return py::bytes(reinterpret_cast<const char*>(runs.data()), runs.size() * sizeof(uint32_t));
}

std::string compressed_text(const std::vector<uint32_t>& lengths) {
  std::string text;
  text.reserve(3 * lengths.size() + 8);
  for (size_t i = 0; i < lengths.size(); ++i) {
    int64_t value = lengths[i];
    if (i > 2) value -= lengths[i - 2];
    bool more = true;
    while (more) {
      int group = static_cast<int>(value & 31);
      value >>= kBitsPerCharacter;
      more = (group & 16) != 0 ? value != -1 : value != 0;
      text.push_back(static_cast<char>(48 + (more ? group | 32 : group)));
    }
  }
  return text;
}

template <typename T>
std::vector<T> numbers_in(const char* what, const py::bytes& bytes) {
  const std::string_view raw = bytes;
  if (raw.size() % sizeof(T) != 0) {
    throw py::value_error(std::string(what) + " must be " + std::to_string(8 * sizeof(T)) + "-bit numbers, got " +
                          std::to_string(raw.size()) + " bytes");
  }
  std::vector<T> numbers(raw.size() / sizeof(T));
  if (!numbers.empty()) std::memcpy(numbers.data(), raw.data(), raw.size());
  return numbers;
}

py::bytes rle_compress(const py::bytes& runs) {
  return py::bytes(compressed_text(numbers_in<uint32_t>("runs", runs)));
}

// Masks whose runs are given by the pixels where they begin and end, down the columns: those of mask n are
// edges[starts[n]] up to edges[starts[n + 1]], rising, the first one a beginning.
py::list rle_from_edges(const py::bytes& edge_bytes, const py::bytes& start_bytes, int64_t pixels) {
  const auto edges = numbers_in<int32_t>("edges", edge_bytes);
  const auto starts = numbers_in<int64_t>("starts", start_bytes);
  py::list texts;
  std::vector<uint32_t> lengths;
  for (size_t n = 0; n + 1 < starts.size(); ++n) {
    const int64_t begin = starts[n], end = starts[n + 1];
    if (begin < 0 || end < begin || end > static_cast<int64_t>(edges.size())) {
      throw py::value_error("starts must rise within the " + std::to_string(edges.size()) + " edges, got " +
                            std::to_string(begin) + " and " + std::to_string(end));
    }
    lengths.clear();
    int64_t before = 0;
    for (int64_t i = begin; i < end; ++i) {
      if (edges[i] < before || edges[i] > pixels || (i > begin && edges[i] == before)) {
        throw py::value_error("edges must rise within the " + std::to_string(pixels) + " pixels, got " +
                              std::to_string(edges[i]) + " after " + std::to_string(before));
      }
      lengths.push_back(static_cast<uint32_t>(edges[i] - before));
      before = edges[i];
    }
    if (before < pixels || lengths.empty()) lengths.push_back(static_cast<uint32_t>(pixels - before));
    texts.append(py::bytes(compressed_text(lengths)));
  }
  return texts;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "How the compiled parts were built, and COCO's compressed run lengths.";
#ifdef MRCNN_CUDA
  m.attr("cuda") = true;
#else
  m.attr("cuda") = false;
#endif
  m.attr("cuda_version") = MRCNN_CUDA_VERSION;
  m.attr("cuda_archs") = MRCNN_CUDA_ARCHS;
  m.attr("compiler") = "g++ " __VERSION__;
  m.attr("torch_version") = MRCNN_TORCH_VERSION;
  m.def("rle_counts", &rle_counts, py::arg("counts"),
        "Run lengths (bytes of little-endian uint32, background first) of a compressed COCO mask. Raises ValueError.");
  m.def("rle_compress", &rle_compress, py::arg("runs"),
        "The compressed COCO text (bytes) of run lengths given as bytes of little-endian uint32. Raises ValueError.");
  m.def("rle_from_edges", &rle_from_edges, py::arg("edges"), py::arg("starts"), py::arg("pixels"),
        "The compressed COCO texts of masks given by the pixels (int32) where their runs begin and end; those of mask "
        "n lie between starts[n] and starts[n + 1] (int64). Raises ValueError.");
}
