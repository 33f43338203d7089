// What stages do to numbers, in float32. Every function lets NaN through.
#pragma once

#include "device/device.h"
#include "program.h"

namespace vrnn {

VRNN_DEVICE float sigmoid(float x) {
    return 1 / (1 + device::exp(-x));
}

// log(1 + exp(x))
VRNN_DEVICE float softplus(float x) {
    return (x < 0 ? 0 : x) + device::log1p(device::exp(x < 0 ? x : -x));
}

// The normal distribution function.
VRNN_DEVICE float normal_cdf(float x) {
    return 0.5f * device::erfc(x * -0.70710678f);
}

template <Activation kind>
VRNN_DEVICE float activate(float x) {
    if constexpr (kind == Activation::relu) return x < 0 ? 0 : x;
    if constexpr (kind == Activation::leaky_relu) return x < 0 ? x * 0.01f : x;
    if constexpr (kind == Activation::tanh) return device::tanh(x);
    if constexpr (kind == Activation::elu) return x < 0 ? device::expm1(x) : x;
    if constexpr (kind == Activation::silu) return x * sigmoid(x);
    if constexpr (kind == Activation::gelu) return x * normal_cdf(x);
    return x;
}

// What a deviation's function sees of a raw value: clamped, shifted and scaled.
VRNN_DEVICE float argument(const Deviation& d, float raw) {
    if (d.has_low && raw < d.low) raw = d.low;
    if (d.has_high && raw > d.high) raw = d.high;
    return (raw + d.shift) * d.scale;
}

VRNN_DEVICE float unbounded(const Deviation& d, float u) {
    return d.softplus ? softplus(u) / d.scale : device::exp(u);
}
VRNN_DEVICE float deviation(const Deviation& d, float raw) {
    const float s = unbounded(d, argument(d, raw)) + d.floor;
    return d.has_minimum && s < d.minimum ? d.minimum : s;
}

// log(sigmoid(x))
VRNN_DEVICE float log_sigmoid(float x) {
    return (x < 0 ? x : 0) - device::log1p(device::exp(x < 0 ? x : -x));
}

// -log of the probability of x: of a Bernoulli variable by its logit, of a normal one.
VRNN_DEVICE float bernoulli(float x, float logit) {
    return -(x * log_sigmoid(logit) + (1 - x) * log_sigmoid(-logit));
}
VRNN_DEVICE float normal(float x, float mean, float std) {
    const float distance = (x - mean) / std;
    return 0.5f * distance * distance + device::log(std) + 0.91893853320467274178f;  // log(2 pi) / 2
}

// KL(N(mean, std) || N(prior_mean, prior_std)) of one feature.
VRNN_DEVICE float divergence(float mean, float std, float prior_mean, float prior_std) {
    const float ratio = std / prior_std, distance = (mean - prior_mean) / prior_std;
    return 0.5f * (ratio * ratio + distance * distance - 1) - device::log(ratio);
}

// log N(z; mean, std) - log N(z; prior_mean, prior_std) of one feature, z being mean + std * eps. As a product, lest
// one of two equal squares is rounded and the other one not.
VRNN_DEVICE float log_ratio(float z, float eps, float std, float prior_mean, float prior_std) {
    const float distance = (z - prior_mean) / prior_std;
    return 0.5f * ((distance - eps) * (distance + eps)) - device::log(std / prior_std);
}

}  // namespace vrnn
