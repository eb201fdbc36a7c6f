#pragma once
// RoIAlign on the CPU for channels-last maps. Forward, one piece of work is a few regions. Backward, one piece is a
// band of rows of a map, each pixel of which is gathered from all bins that reach it and written once: no two threads
// ever add to the same number, and the gradient needs no zeros beforehand.
#include <algorithm>
#include <vector>

#include "mix.h"
#include "plan.h"

namespace mrcnn {

template <typename T>
struct PoolScratch {
  AxisMatrix<accumulator_t<T>> rows, columns;
  std::vector<Share<T>> shares;
};

// Reads one number from each page of memory that a region lies on. Where maps lie in small pages, finding these takes
// longer than reading them, unless all are looked up at once.
template <typename T>
void touch_pages(const T* map, const AxisMatrix<accumulator_t<T>>& rows, const AxisMatrix<accumulator_t<T>>& columns,
                 int64_t row_size, int64_t channels) {
  constexpr int64_t kPage = 4096 / sizeof(T);
  for (int y = rows.low; y < rows.high; ++y) {
    const T* row = map + y * row_size;
    const int64_t last = columns.high * channels - 1;
    for (int64_t c = columns.low * channels; c < last; c += kPage) __builtin_prefetch(row + c);
    if (last >= 0) __builtin_prefetch(row + last);
  }
}

template <typename T>
void pool_channels_last(const Order<accumulator_t<T>>& order, T* pooled) {
  const FeatureMaps& maps = order.maps;
  const Pooling& pooling = order.pooling;
  const auto count = static_cast<int64_t>(order.places.size());
  const int64_t channels = maps.channels, size = int64_t{1} * pooling.height * pooling.width * channels;
  const auto mixer = chosen_mixer<T>(channels, count * size * sizeof(T), {pooled});
  constexpr int64_t kRegions = 4;  // of a piece
  for_each_piece<PoolScratch<T>>((count + kRegions - 1) / kRegions, [&](int64_t piece, PoolScratch<T>& scratch) {
    for (int64_t i = piece * kRegions; i < std::min((piece + 1) * kRegions, count); ++i) {
      const auto& place = order.places[i];
      const int64_t height = maps.height[place.level], width = maps.width[place.level];
      const T* map = static_cast<const T*>(maps.data[place.level]) + place.image * height * width * channels;
      fill_bins_from_pixels(order.rows(place), scratch.rows);
      fill_bins_from_pixels(order.columns(place), scratch.columns);
      touch_pages(map, scratch.rows, scratch.columns, width * channels, channels);
      T* out = pooled + place.region * size;
      for (int y = 0; y < pooling.height; ++y) {
        const auto rows = scratch.rows.row(y);
        for (int x = 0; x < pooling.width; ++x, out += channels) {
          const auto columns = scratch.columns.row(x);
          scratch.shares.resize(int64_t{1} * rows.count * columns.count);
          Share<T>* share = scratch.shares.data();
          for (const auto& row : rows) {
            const T* pixels = map + row.position * width * channels;
            for (const auto& column : columns) {
              *share++ = {pixels + column.position * channels, row.weight * column.weight};
            }
          }
          mixer.mix(scratch.shares.data(), share - scratch.shares.data(), channels, out);
        }
      }
    }
    mixer.finish();
  });
}

// Gathers the gradients of one band of rows after the other.
//
//      x:   0    3       8    12          along a band the set of regions above a pixel changes only where one begins
//      A         [------------)           or ends: here at 3, 8 and 12. Between these places all pixels have the same
//      B                 [----------)     regions, in the order of the call's plan.
template <typename T>
class BandGatherer {
 public:
  using A = accumulator_t<T>;

  // Rows [first_row, last_row) of one map; `plans` are of its regions.
  void gather(const RegionPlan<A>* plans, int64_t count, const Pooling& pooling, const T* pooled, int64_t channels,
              int first_row, int last_row, int width, T* map, const Mixer<T>& mixer) {
    pooling_ = &pooling, pooled_ = pooled, channels_ = channels, mixer_ = &mixer;
    find_regions(plans, count, first_row, last_row);
    covering_.clear();
    int x = 0;
    for (size_t event = 0; x < width;) {
      for (; event < events_.size() && events_[event].x == x; ++event) {
        const auto place = std::lower_bound(covering_.begin(), covering_.end(), events_[event].region);
        events_[event].begins ? void(covering_.insert(place, events_[event].region)) : void(covering_.erase(place));
      }
      const int end = event < events_.size() ? events_[event].x : width;
      for (int y = first_row; y < last_row; ++y) {
        gather_pixels(y, x, end, map + (int64_t{1} * y * width + x) * channels);
      }
      x = end;
    }
  }

 private:
  struct Event {
    int x, region;
    bool begins;
  };
  // A row of a region: what its pixels are made of along y.
  struct Line {
    const AxisMatrix<A>* columns;
    Taps<A> rows;
    const T* bins;
  };

  void find_regions(const RegionPlan<A>* plans, int64_t count, int first_row, int last_row) {
    regions_.clear();
    events_.clear();
    for (const RegionPlan<A>* plan = plans; plan < plans + count; ++plan) {
      const int first = plan->columns.first, last = first + plan->columns.rows();
      if (plan->rows.first >= last_row || plan->rows.first + plan->rows.rows() <= first_row || first == last) continue;
      const int region = static_cast<int>(regions_.size());
      regions_.push_back(plan);
      events_.push_back({first, region, true});
      events_.push_back({last, region, false});
    }
    std::sort(events_.begin(), events_.end(), [](const Event& a, const Event& b) {
      return std::tie(a.x, a.region, a.begins) < std::tie(b.x, b.region, b.begins);
    });
  }

  // Pixels [first, last) of a row, all under the regions `covering_`.
  void gather_pixels(int y, int first, int last, T* out) {
    lines_.clear();
    const int64_t bin_row = pooling_->width * channels_;
    for (const int region : covering_) {
      const RegionPlan<A>& plan = *regions_[region];
      const int row = y - plan.rows.first;
      if (row < 0 || row >= plan.rows.rows()) continue;
      const Taps<A> rows = plan.rows.row(row);
      if (rows.count > 0) lines_.push_back({&plan.columns, rows, pooled_ + plan.region * pooling_->height * bin_row});
    }
    if (lines_.empty()) {
      mixer_->clear(out, (last - first) * channels_);
      return;
    }
    for (int x = first; x < last; ++x, out += channels_) {
      shares_.clear();
      for (const Line& line : lines_) {
        const Taps<A> columns = line.columns->row(x - line.columns->first);
        for (const Tap<A>& row : line.rows) {
          const T* bins = line.bins + row.position * bin_row;
          for (const Tap<A>& column : columns) {
            shares_.push_back({bins + column.position * channels_, row.weight * column.weight});
          }
        }
      }
      mixer_->mix(shares_.data(), static_cast<int64_t>(shares_.size()), channels_, out);
    }
  }

  const Pooling* pooling_ = nullptr;
  const T* pooled_ = nullptr;
  int64_t channels_ = 0;
  const Mixer<T>* mixer_ = nullptr;
  std::vector<const RegionPlan<A>*> regions_;  // of the band
  std::vector<Event> events_;
  std::vector<int> covering_;  // indices into regions_, ascending
  std::vector<Line> lines_;
  std::vector<Share<T>> shares_;
};

template <typename T>
void gather_channels_last(const Order<accumulator_t<T>>& order, const T* pooled) {
  struct Band {
    int level;
    int64_t image;
    int first_row, last_row;
  };
  // The bins above a band stay in the cache while it is walked along; what is taller reads them more often from there,
  // what is lower fetches them again for the next band.
  constexpr int kBandRows = 8;
  const FeatureMaps& maps = order.maps;
  const auto plans = planned(order, true);
  std::vector<Band> bands;
  std::vector<const void*> targets;
  int64_t bytes = 0;
  for (int level = 0; level < order.pooling.levels; ++level) {
    const int height = maps.height[level];
    const int64_t row = maps.width[level] * maps.channels * static_cast<int64_t>(sizeof(T));
    for (int64_t image = 0; image < maps.images; ++image) {
      for (int y = 0; y < height; y += kBandRows) {
        bands.push_back({level, image, y, std::min(y + kBandRows, height)});
      }
    }
    targets.push_back(maps.data[level]);
    bytes += maps.images * height * row;
  }
  const auto mixer = chosen_mixer<T>(maps.channels, bytes, targets);
  for_each_piece<BandGatherer<T>>(static_cast<int64_t>(bands.size()), [&](int64_t piece, BandGatherer<T>& gatherer) {
    const Band& band = bands[piece];
    const int64_t begin = order.start(band.level, band.image), end = order.start(band.level, band.image + 1);
    const int width = maps.width[band.level];
    T* map = static_cast<T*>(maps.data[band.level]) + band.image * maps.height[band.level] * width * maps.channels;
    gatherer.gather(plans.data() + begin, end - begin, order.pooling, pooled, maps.channels, band.first_row,
                    band.last_row, width, map, mixer);
    mixer.finish();
  });
}

}  // namespace mrcnn
