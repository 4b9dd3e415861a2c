/* What is ordered before what: a count of operations for each stream, and who touched an allocation. */
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

namespace card {
/* An operation's place in its stream, from 1 on. */
typedef uint64_t Place;

struct Point {
    unsigned stream;
    Place place;
};

/* For each stream, how many of its operations come before. */
struct Clock {
    std::vector<Place> places;

    Place of(unsigned stream) const { return stream < places.size() ? places[stream] : 0; }
    bool holds(Point point) const { return point.place <= of(point.stream); }
    bool holds(const Clock& other) const {
        for (unsigned stream = 0; stream < other.places.size(); stream++) {
            if (!holds({stream, other.places[stream]})) return false;
        }
        return true;
    }
    void raise(Point point) {
        if (point.stream >= places.size()) places.resize(point.stream + 1);
        if (places[point.stream] < point.place) places[point.stream] = point.place;
    }
    void join(const Clock& other) {
        for (unsigned stream = 0; stream < other.places.size(); stream++) raise({stream, other.places[stream]});
    }
};
typedef std::shared_ptr<const Clock> SharedClock;

/* Bytes of an allocation that an operation read or wrote. */
struct Access {
    Point by;
    const char* name;
    uint64_t begin, end;
    bool writes;
};
}  // namespace card
