// What a decode step does between its matrix products, for all sequences at once: attention of one new token each, gates,
// and the experts of a mixture.
//
// Compiled as C++ by a test too, threads emulated: nothing may be used here that `emulated_cuda.h` does not know.

#ifdef EMULATED_CUDA
#include "emulated_cuda.h"
#else
#define SHARED_MEMORY(name) extern __shared__ float name[];
#endif

#define MAX_SEQUENCES 64 // of one launch
#define SPAN 256         // keys of a block
#define THREADS 128

// The sequences of a launch, by value. Keys and values are [kv heads, capacity, head_dim] each.
struct Sequences {
    unsigned long long keys[MAX_SEQUENCES];
    unsigned long long values[MAX_SEQUENCES];
    int capacity[MAX_SEQUENCES];
    int token[MAX_SEQUENCES];    // of this step
    int position[MAX_SEQUENCES]; // where that token comes to stand
    int from[MAX_SEQUENCES];     // first key it sees
};

struct Shape {
    int heads;
    int kv_heads;
    int head_dim; // a multiple of 32
    int splits;   // blocks per sequence and key/value head
};

// bf16 is the upper half of an f32; it is rounded to even.
__device__ inline float widen(const float *x) { return *x; }
__device__ inline float widen(const unsigned short *x) { return __uint_as_float((unsigned)*x << 16); }
__device__ inline void narrow(float *to, float x) { *to = x; }
__device__ inline void narrow(unsigned short *to, float x) {
    unsigned bits = __float_as_uint(x);
    *to = (unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Eight values from an address that is a multiple of 16.
__device__ inline void eight(const float *x, float *to) {
    float4 a = ((const float4 *)x)[0], b = ((const float4 *)x)[1];
    to[0] = a.x; to[1] = a.y; to[2] = a.z; to[3] = a.w;
    to[4] = b.x; to[5] = b.y; to[6] = b.z; to[7] = b.w;
}
__device__ inline void eight(const unsigned short *x, float *to) {
    uint4 a = *(const uint4 *)x;
    unsigned parts[4] = {a.x, a.y, a.z, a.w};
    for (int i = 0; i < 4; i++) {
        to[2 * i] = __uint_as_float(parts[i] << 16);
        to[2 * i + 1] = __uint_as_float(parts[i] & 0xffff0000u);
    }
}

__device__ inline float warp_max(float x) {
    for (int o = 16; o > 0; o >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, o));
    return x;
}

__device__ inline float warp_sum(float x) {
    for (int o = 16; o > 0; o >>= 1) x += __shfl_xor_sync(0xffffffffu, x, o);
    return x;
}

// One span of keys of one sequence, for the query heads that share a key/value head; the new token's key and value are
// put in their place on the way. Leaves, per head and span, what the values add up to, and the largest score and the sum
// of exponentials they were weighted with: out [sequences, heads, splits, head_dim + 2].
// Shared memory: group * (head_dim + SPAN) floats.
template <typename T>
__device__ void attend(const T *q, const T *k, const T *v, const Sequences &all, const Shape &shape, float scale, float *out) {
    SHARED_MEMORY(shared)
    int kv_head = blockIdx.x, split = blockIdx.y, s = blockIdx.z, tid = threadIdx.x;
    int hd = shape.head_dim, group = shape.heads / shape.kv_heads;
    int last = all.position[s];
    // Spans begin at multiples of their length, whatever the window, so that a block's keys lie together.
    int begin = (all.from[s] / SPAN + split) * SPAN;
    int first = begin > all.from[s] ? begin : all.from[s], end = min(begin + SPAN, last + 1);
    if (first >= end) return;
    T *keys = (T *)all.keys[s] + (long)kv_head * all.capacity[s] * hd;
    T *values = (T *)all.values[s] + (long)kv_head * all.capacity[s] * hd;
    long token = all.token[s];
    float *queries = shared;              // [group][head_dim]
    float *scores = queries + group * hd; // [group][SPAN]
    for (int i = tid; i < group * hd; i += THREADS)
        queries[i] = widen(q + (token * shape.heads + kv_head * group) * hd + i) * scale;
    if (end == last + 1)
        for (int i = tid; i < hd; i += THREADS) {
            keys[(long)last * hd + i] = k[(token * shape.kv_heads + kv_head) * hd + i];
            values[(long)last * hd + i] = v[(token * shape.kv_heads + kv_head) * hd + i];
        }
    __syncthreads();

    for (int key = first + tid; key < end; key += THREADS) {
        const T *row = keys + (long)key * hd;
        for (int h = 0; h < group; h++) scores[h * SPAN + key - first] = 0.0f;
        for (int d = 0; d < hd; d += 8) {
            float part[8];
            eight(row + d, part);
            for (int h = 0; h < group; h++) {
                const float *query = queries + h * hd + d;
                float sum = scores[h * SPAN + key - first];
                for (int i = 0; i < 8; i++) sum += query[i] * part[i];
                scores[h * SPAN + key - first] = sum;
            }
        }
    }
    __syncthreads();

    int count = end - first, lane = tid % 32;
    long place = (((long)s * shape.heads + kv_head * group) * shape.splits + split) * (hd + 2);
    long next = (long)shape.splits * (hd + 2);
    for (int base = 0; base < group; base += THREADS / 32) {
        int h = base + tid / 32;
        bool there = h < group;
        float most = -INFINITY;
        for (int i = lane; i < count && there; i += 32) most = fmaxf(most, scores[h * SPAN + i]);
        most = warp_max(most);
        float sum = 0.0f;
        for (int i = lane; i < count && there; i += 32) {
            float weight = expf(scores[h * SPAN + i] - most);
            scores[h * SPAN + i] = weight;
            sum += weight;
        }
        sum = warp_sum(sum);
        if (lane == 0 && there) {
            out[place + h * next + hd] = most;
            out[place + h * next + hd + 1] = sum;
        }
    }
    __syncthreads();

    for (int d = tid; d < hd; d += THREADS) {
        for (int h = 0; h < group; h += 4) {
            float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            for (int i = 0; i < count; i++) {
                float value = widen(values + (long)(first + i) * hd + d);
                for (int j = 0; j < 4; j++)
                    if (h + j < group) sum[j] += scores[(h + j) * SPAN + i] * value;
            }
            for (int j = 0; j < 4; j++)
                if (h + j < group) out[place + (h + j) * next + d] = sum[j];
        }
    }
}

// Spans of a head put together. grid (heads, sequences), head_dim threads
template <typename T>
__device__ void merge(const float *parts, const Sequences &all, const Shape &shape, T *out) {
    int h = blockIdx.x, s = blockIdx.y, d = threadIdx.x, hd = shape.head_dim;
    const float *mine = parts + ((long)s * shape.heads + h) * shape.splits * (hd + 2);
    int spans = all.position[s] / SPAN - all.from[s] / SPAN + 1;
    float most = -INFINITY, sum = 0.0f, value = 0.0f;
    for (int i = 0; i < spans; i++) most = fmaxf(most, mine[(long)i * (hd + 2) + hd]);
    for (int i = 0; i < spans; i++) {
        float weight = expf(mine[(long)i * (hd + 2) + hd] - most);
        sum += weight * mine[(long)i * (hd + 2) + hd + 1];
        value += weight * mine[(long)i * (hd + 2) + d];
    }
    narrow(out + ((long)all.token[s] * shape.heads + h) * hd + d, value / sum);
}

// x * silu(gate), or x * sigmoid(gate); rounded once. grid (count / THREADS)
template <typename T>
__device__ void gate(const T *gates, const T *x, int silu, int count, T *out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    float g = widen(gates + i), y = widen(x + i) / (1.0f + expf(-g));
    narrow(out + i, silu ? g * y : y);
}

// The experts of one token, likeliest first, among equals the lower index, and their shares of a softmax over all.
// grid (tokens), 32 threads, `experts` floats of shared memory
template <typename T>
__device__ void route(const T *logits, int experts, int chosen, int renormalise, unsigned *ids, float *shares) {
    SHARED_MEMORY(shared)
    int token = blockIdx.x, lane = threadIdx.x;
    float most = -INFINITY, sum = 0.0f;
    for (int i = lane; i < experts; i += 32) most = fmaxf(most, widen(logits + (long)token * experts + i));
    most = warp_max(most);
    for (int i = lane; i < experts; i += 32) {
        shared[i] = expf(widen(logits + (long)token * experts + i) - most);
        sum += shared[i];
    }
    sum = warp_sum(sum);
    __syncthreads();
    float total = 0.0f;
    for (int c = 0; c < chosen; c++) {
        float best = -1.0f, at = 0.0f; // an index is exact as a float
        for (int i = lane; i < experts; i += 32)
            if (shared[i] > best) { best = shared[i]; at = (float)i; }
        for (int o = 16; o > 0; o >>= 1) {
            float other = __shfl_xor_sync(0xffffffffu, best, o), there = __shfl_xor_sync(0xffffffffu, at, o);
            if (other > best || (other == best && there < at)) { best = other; at = there; }
        }
        total += best / sum;
        if (lane == 0) {
            ids[token * chosen + c] = (unsigned)at;
            shares[token * chosen + c] = best / sum;
            shared[(int)at] = -1.0f;
        }
        __syncthreads();
    }
    // Shares are rounded as the activations are.
    if (lane == 0)
        for (int c = 0; c < chosen; c++) {
            T rounded;
            narrow(&rounded, shares[token * chosen + c] / (renormalise ? total : 1.0f));
            shares[token * chosen + c] = widen(&rounded);
        }
}

// Eight by eight of a row and of values, over the lanes of a warp. `width` is a multiple of eight.
template <typename T, typename X>
__device__ float dot(const T *row, const X *x, int width, bool there) {
    float sum = 0.0f;
    for (int d = threadIdx.x % 32 * 8; d < width && there; d += 256) {
        float a[8], b[8];
        eight(row + d, a);
        eight(x + d, b);
        for (int i = 0; i < 8; i++) sum += a[i] * b[i];
    }
    return warp_sum(sum);
}

// silu(gate(x)) * up(x) of every token's experts: out [tokens * chosen, inner]. A warp per value.
// grid (inner / 4, tokens * chosen), THREADS threads
template <typename T>
__device__ void expert_in(const T *x, const unsigned long long *gates, const unsigned long long *ups, const unsigned *ids, int chosen, int hidden, int inner, float *out) {
    int n = blockIdx.x * (THREADS / 32) + threadIdx.x / 32, pair = blockIdx.y;
    bool there = n < inner;
    const T *token = x + (long)(pair / chosen) * hidden;
    long row = there ? (long)n * hidden : 0;
    float g = dot((const T *)gates[ids[pair]] + row, token, hidden, there);
    float u = dot((const T *)ups[ids[pair]] + row, token, hidden, there);
    if (there && threadIdx.x % 32 == 0) out[(long)pair * inner + n] = u * g / (1.0f + expf(-g));
}

// The shares' sum of what the experts make of that: out [tokens, hidden]. A warp per value.
// grid (hidden / 4, tokens), THREADS threads
template <typename T>
__device__ void expert_out(const float *h, const unsigned long long *downs, const unsigned *ids, const float *shares, int chosen, int hidden, int inner, T *out) {
    int n = blockIdx.x * (THREADS / 32) + threadIdx.x / 32, token = blockIdx.y;
    bool there = n < hidden;
    long row = there ? (long)n * inner : 0;
    float sum = 0.0f;
    for (int c = 0; c < chosen; c++) {
        int pair = token * chosen + c;
        sum += shares[pair] * dot((const T *)downs[ids[pair]] + row, h + (long)pair * inner, inner, there);
    }
    if (there && threadIdx.x % 32 == 0) narrow(out + (long)token * hidden + n, sum);
}

extern "C" __global__ void decode_attend_f32(const float *q, const float *k, const float *v, Sequences all, Shape shape, float scale, float *out) { attend(q, k, v, all, shape, scale, out); }
extern "C" __global__ void decode_attend_bf16(const unsigned short *q, const unsigned short *k, const unsigned short *v, Sequences all, Shape shape, float scale, float *out) { attend(q, k, v, all, shape, scale, out); }
extern "C" __global__ void decode_merge_f32(const float *parts, Sequences all, Shape shape, float *out) { merge(parts, all, shape, out); }
extern "C" __global__ void decode_merge_bf16(const float *parts, Sequences all, Shape shape, unsigned short *out) { merge(parts, all, shape, out); }
extern "C" __global__ void gate_f32(const float *gates, const float *x, int silu, int count, float *out) { gate(gates, x, silu, count, out); }
extern "C" __global__ void gate_bf16(const unsigned short *gates, const unsigned short *x, int silu, int count, unsigned short *out) { gate(gates, x, silu, count, out); }
extern "C" __global__ void route_f32(const float *logits, int experts, int chosen, int renormalise, unsigned *ids, float *shares) { route(logits, experts, chosen, renormalise, ids, shares); }
extern "C" __global__ void route_bf16(const unsigned short *logits, int experts, int chosen, int renormalise, unsigned *ids, float *shares) { route(logits, experts, chosen, renormalise, ids, shares); }
extern "C" __global__ void expert_in_f32(const float *x, const unsigned long long *gates, const unsigned long long *ups, const unsigned *ids, int chosen, int hidden, int inner, float *out) { expert_in(x, gates, ups, ids, chosen, hidden, inner, out); }
extern "C" __global__ void expert_in_bf16(const unsigned short *x, const unsigned long long *gates, const unsigned long long *ups, const unsigned *ids, int chosen, int hidden, int inner, float *out) { expert_in(x, gates, ups, ids, chosen, hidden, inner, out); }
extern "C" __global__ void expert_out_f32(const float *h, const unsigned long long *downs, const unsigned *ids, const float *shares, int chosen, int hidden, int inner, float *out) { expert_out(h, downs, ids, shares, chosen, hidden, inner, out); }
extern "C" __global__ void expert_out_bf16(const float *h, const unsigned long long *downs, const unsigned *ids, const float *shares, int chosen, int hidden, int inner, unsigned short *out) { expert_out(h, downs, ids, shares, chosen, hidden, inner, out); }
