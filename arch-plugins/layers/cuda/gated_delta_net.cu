// Gated DeltaNet on a GPU: the causal convolution, the gates, and the delta rule in its recurrent and its chunked form.
//
// The arithmetic is that of `src/gated_delta_net/kernel.rs`, which explains it; the state is f32 and so is everything
// computed here. The same text is compiled as C++ by a test, threads emulated, and compared with that file, so nothing
// may be used here that `emulated_cuda.h` does not know.
//
// Decay between two tokens is always the exponential of a difference of sums, never a product of two exponentials.

#ifdef EMULATED_CUDA
#include "emulated_cuda.h"
#else
#define SHARED_MEMORY(name) extern __shared__ float name[];
#endif

#define MAX_ROWS 64    // sequences of one launch
#define CHUNK 64       // tokens of a chunk
#define COLUMNS 32     // columns of the state one block owns
#define SLICES 4       // threads that share a column in the recurrent form
#define PANEL 16       // inner values brought to shared memory at a time while scanning chunks
#define WIDE 32        // and while preparing them
#define CHANNELS 256   // threads of the elementwise kernels
#define RUN 8          // tokens of one thread of the convolution

// The sequences of a launch, by value: nothing has to be copied to the device first.
struct Rows {
    unsigned long long state[MAX_ROWS];
    int first[MAX_ROWS];
    int tokens[MAX_ROWS];
};

struct Heads {
    int key_heads;
    int value_heads;
    int key_dim;
    int value_dim;
    int tiled; // value heads cycle through the key heads, rather than sharing one with their neighbours
};

__device__ inline int key_head(const Heads &h, int value_head) {
    return h.tiled ? value_head % h.key_heads : value_head / (h.value_heads / h.key_heads);
}

__device__ inline long channels_of(const Heads &h) {
    return 2L * h.key_heads * h.key_dim + (long)h.value_heads * h.value_dim;
}

// Activations come as f32 or as bf16, which is the upper half of one.
__device__ inline float load(const void *x, long i, int bf16) {
    if (!bf16) return ((const float *)x)[i];
    return __uint_as_float((unsigned)((const unsigned short *)x)[i] << 16);
}

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

__device__ inline float warp_sum(float x) {
    for (int o = 16; o > 0; o >>= 1) x += __shfl_xor_sync(0xffffffffu, x, o);
    return x;
}

// One token of each sequence: convolve, remember it. grid (channels / CHANNELS, rows)
extern "C" __global__ void gdn_conv_step(const void *mixed, int bf16, const float *taps, Rows rows, int channels, int kernel, float *out) {
    int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= channels) return;
    float *past = (float *)rows.state[blockIdx.y];
    long at = (long)rows.first[blockIdx.y] * channels + c;
    float x = load(mixed, at, bf16), sum = 0.0f;
    for (int j = 0; j < kernel - 1; j++) {
        sum += taps[(long)j * channels + c] * past[(long)j * channels + c];
        past[(long)j * channels + c] = j + 2 < kernel ? past[(long)(j + 1) * channels + c] : x;
    }
    sum += taps[(long)(kernel - 1) * channels + c] * x;
    out[at] = sum * sigmoid(sum);
}

// Many tokens of each sequence: convolve. grid (channels / CHANNELS, longest row / RUN, rows)
extern "C" __global__ void gdn_conv(const void *mixed, int bf16, const float *taps, Rows rows, int channels, int kernel, float *out) {
    int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= channels) return;
    const float *past = (const float *)rows.state[blockIdx.z];
    int tokens = rows.tokens[blockIdx.z];
    long first = rows.first[blockIdx.z];
    int end = min(tokens, (int)(blockIdx.y + 1) * RUN);
    for (int t = blockIdx.y * RUN; t < end; t++) {
        float sum = 0.0f;
        for (int j = 0; j < kernel; j++) {
            int from = t - (kernel - 1) + j;
            float x = from < 0 ? past[(long)(from + kernel - 1) * channels + c]
                               : load(mixed, (first + from) * channels + c, bf16);
            sum += taps[(long)j * channels + c] * x;
        }
        out[(first + t) * channels + c] = sum * sigmoid(sum);
    }
}

// After gdn_conv: remember the newest tokens. grid (channels / CHANNELS, rows)
extern "C" __global__ void gdn_conv_keep(const void *mixed, int bf16, Rows rows, int channels, int kernel) {
    int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= channels) return;
    float *past = (float *)rows.state[blockIdx.y];
    int tokens = rows.tokens[blockIdx.y];
    long first = rows.first[blockIdx.y];
    // What is read lies behind what has been written: no row has less than one token.
    for (int j = 0; j < kernel - 1; j++) {
        int from = tokens - (kernel - 1) + j;
        past[(long)j * channels + c] = from < 0 ? past[(long)(from + kernel - 1) * channels + c]
                                                : load(mixed, (first + from) * channels + c, bf16);
    }
}

// How strongly each head writes and how fast it forgets. grid (count / CHANNELS)
extern "C" __global__ void gdn_gates(const void *b, const void *a, int bf16, const float *rate, const float *bias, int heads, int count, float *beta, float *decay) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    int head = i % heads;
    beta[i] = sigmoid(load(b, i, bf16));
    float x = load(a, i, bf16) + bias[head];
    decay[i] = rate[head] * (fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x))));
}

// Token by token. grid (value_dim / COLUMNS, value_heads, rows), COLUMNS * SLICES threads,
// (key_dim * (COLUMNS + 2) + 2 * SLICES * COLUMNS) floats of shared memory
extern "C" __global__ void gdn_recurrent(const float *mixed, const float *beta, const float *decay, Rows rows, Heads heads, float *out) {
    SHARED_MEMORY(shared)
    int dk = heads.key_dim, dv = heads.value_dim, head = blockIdx.y;
    float *m = shared;                    // [dk][COLUMNS]
    float *k = m + dk * COLUMNS;          // [dk]
    float *q = k + dk;                    // [dk]
    float *reads = q + dk;                // [SLICES][COLUMNS]
    float *answers = reads + SLICES * COLUMNS;
    int c = threadIdx.x % COLUMNS, s = threadIdx.x / COLUMNS, lane = threadIdx.x % 32;
    int column = blockIdx.x * COLUMNS + c;
    bool mine = column < dv;
    float *state = (float *)rows.state[blockIdx.z] + (long)head * dk * dv;
    for (int i = s; i < dk; i += SLICES) m[i * COLUMNS + c] = mine ? state[(long)i * dv + column] : 0.0f;

    long channels = channels_of(heads);
    long q_at = (long)key_head(heads, head) * dk;
    long k_at = (long)heads.key_heads * dk + q_at;
    long v_at = 2L * heads.key_heads * dk + (long)head * dv;
    float scale = 1.0f / sqrtf((float)dk);
    for (int t = 0; t < rows.tokens[blockIdx.z]; t++) {
        long token = rows.first[blockIdx.z] + t;
        const float *x = mixed + token * channels;
        for (int i = threadIdx.x; i < dk; i += COLUMNS * SLICES) {
            k[i] = x[k_at + i];
            q[i] = x[q_at + i];
        }
        __syncthreads();
        float kk = 0.0f, qq = 0.0f;
        for (int i = lane; i < dk; i += 32) {
            kk += k[i] * k[i];
            qq += q[i] * q[i];
        }
        float unit_k = 1.0f / sqrtf(warp_sum(kk) + 1e-6f);
        float unit_q = scale / sqrtf(warp_sum(qq) + 1e-6f);
        float keep = expf(decay[token * heads.value_heads + head]);
        float read = 0.0f;
        for (int i = s; i < dk; i += SLICES) read += m[i * COLUMNS + c] * k[i];
        reads[s * COLUMNS + c] = read;
        __syncthreads();
        read = 0.0f;
        for (int i = 0; i < SLICES; i++) read += reads[i * COLUMNS + c];
        float value = mine ? x[v_at + column] : 0.0f;
        float error = beta[token * heads.value_heads + head] * (value - keep * unit_k * read);
        float answer = 0.0f;
        for (int i = s; i < dk; i += SLICES) {
            float now = keep * m[i * COLUMNS + c] + unit_k * k[i] * error;
            m[i * COLUMNS + c] = now;
            answer += now * q[i];
        }
        answers[s * COLUMNS + c] = answer;
        __syncthreads();
        if (s == 0 && mine) {
            answer = 0.0f;
            for (int i = 0; i < SLICES; i++) answer += answers[i * COLUMNS + c];
            out[(token * heads.value_heads + head) * dv + column] = unit_q * answer;
        }
    }
    for (int i = s; i < dk; i += SLICES)
        if (mine) state[(long)i * dv + column] = m[i * COLUMNS + c];
}

// The part of the chunked form that knows no state, for one row of `tokens` from `first` on, all chunks side by side.
// With A_ij = beta_i (k_i·k_j) e^(c_i - c_j) below the diagonal and T = (I + A)^-1:
//   u = T diag(beta) V        [tokens, heads, dv]
//   w = T diag(beta e^c) K    [tokens, heads, dk]
//   p = (Q K^T) e^(c_i - c_j) with its diagonal   [tokens, heads, CHUNK]
//   f = { of q: 1/|q| e^c / sqrt(dk), of k: 1/|k| e^(c_end - c), e^c_end }   [tokens, heads, 3]
// grid (chunks, value_heads), 256 threads,
// (2 * CHUNK * (CHUNK + 1) + 2 * CHUNK + CHUNK * (WIDE + 1) + 4 * CHUNK) floats of shared memory
extern "C" __global__ void gdn_chunk_prepare(const float *mixed, const float *beta, const float *decay, int first, int tokens, Heads heads, float *u, float *w, float *p, float *f) {
    SHARED_MEMORY(shared)
    float *a = shared;                        // [CHUNK][CHUNK + 1]
    float *inverse = a + CHUNK * (CHUNK + 1); // [CHUNK][CHUNK + 1]; before that the panels of k and q
    float *panel_k = inverse;                 // [CHUNK][WIDE + 1]
    float *panel_q = panel_k + CHUNK * (WIDE + 1);
    float *x = inverse + CHUNK * (CHUNK + 1) + 2 * CHUNK; // [CHUNK][WIDE + 1]
    float *c = x + CHUNK * (WIDE + 1);
    float *writes = c + CHUNK;
    float *unit_k = writes + CHUNK;
    float *unit_q = unit_k + CHUNK;
    int dk = heads.key_dim, dv = heads.value_dim, head = blockIdx.y, hv = heads.value_heads;
    int start = blockIdx.x * CHUNK, n = min(CHUNK, tokens - start);
    long channels = channels_of(heads);
    long q_at = (long)key_head(heads, head) * dk;
    long k_at = (long)heads.key_heads * dk + q_at;
    long v_at = 2L * heads.key_heads * dk + (long)head * dv;
    long token = first + start;
    const float *in = mixed + token * channels;
    int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;

    float scale = 1.0f / sqrtf((float)dk);
    for (int t = warp; t < CHUNK; t += 8) {
        float kk = 0.0f, qq = 0.0f;
        for (int i = lane; i < dk && t < n; i += 32) {
            float kv = in[t * channels + k_at + i], qv = in[t * channels + q_at + i];
            kk += kv * kv;
            qq += qv * qv;
        }
        kk = warp_sum(kk);
        qq = warp_sum(qq);
        if (lane == 0) {
            unit_k[t] = 1.0f / sqrtf(kk + 1e-6f);
            unit_q[t] = scale / sqrtf(qq + 1e-6f);
        }
    }
    if (tid < CHUNK) {
        float sum = 0.0f;
        for (int i = 0; i <= tid && i < n; i++) sum += decay[(token + i) * hv + head];
        c[tid] = sum;
        writes[tid] = tid < n ? beta[(token + tid) * hv + head] : 0.0f;
    }
    __syncthreads();
    if (tid < n) {
        float *mine = f + ((long)(start + tid) * hv + head) * 3;
        mine[0] = unit_q[tid] * expf(c[tid]);
        mine[1] = unit_k[tid] * expf(c[n - 1] - c[tid]);
        mine[2] = expf(c[n - 1]);
    }

    // Each thread four by four of K K^T and of Q K^T.
    int row = tid / 16 * 4, col = tid % 16 * 4;
    float kk[4][4], qk[4][4];
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) kk[i][j] = qk[i][j] = 0.0f;
    for (int from = 0; from < dk; from += WIDE) {
        for (int i = tid; i < CHUNK * WIDE; i += 256) {
            int t = i / WIDE, d = i % WIDE;
            bool there = t < n && from + d < dk;
            panel_k[t * (WIDE + 1) + d] = there ? in[t * channels + k_at + from + d] * unit_k[t] : 0.0f;
            panel_q[t * (WIDE + 1) + d] = there ? in[t * channels + q_at + from + d] * unit_q[t] : 0.0f;
        }
        __syncthreads();
        for (int d = 0; d < WIDE; d++) {
            for (int j = 0; j < 4; j++) {
                float other = panel_k[(col + j) * (WIDE + 1) + d];
                for (int i = 0; i < 4; i++) {
                    kk[i][j] += panel_k[(row + i) * (WIDE + 1) + d] * other;
                    qk[i][j] += panel_q[(row + i) * (WIDE + 1) + d] * other;
                }
            }
        }
        __syncthreads();
    }
    for (int i = 0; i < 4; i++) {
        for (int j = 0; j < 4; j++) {
            int t = row + i, s = col + j;
            float fade = t < n && s <= t ? expf(c[t] - c[s]) : 0.0f;
            a[t * (CHUNK + 1) + s] = s < t ? writes[t] * kk[i][j] * fade : 0.0f;
            if (t < n) p[((long)(start + t) * hv + head) * CHUNK + s] = qk[i][j] * fade;
        }
    }
    __syncthreads();

    // A column of the inverse per thread, by forward substitution.
    if (tid < CHUNK) {
        for (int i = 0; i < CHUNK; i++) {
            float sum = i == tid ? 1.0f : 0.0f;
            for (int j = tid; j < i; j++) sum -= a[i * (CHUNK + 1) + j] * inverse[j * (CHUNK + 1) + tid];
            inverse[i * (CHUNK + 1) + tid] = sum;
        }
    }
    __syncthreads();

    int mine = tid % WIDE, group = tid / WIDE * 8;
    for (int part = 0; part < 2; part++) {
        int width = part == 0 ? dv : dk;
        long at = part == 0 ? v_at : k_at;
        float *to = part == 0 ? u : w;
        for (int from = 0; from < width; from += WIDE) {
            for (int i = tid; i < CHUNK * WIDE; i += 256) {
                int t = i / WIDE, d = i % WIDE;
                float value = t < n && from + d < width ? writes[t] * in[t * channels + at + from + d] : 0.0f;
                x[t * (WIDE + 1) + d] = part == 0 ? value : value * unit_k[t] * expf(c[t]);
            }
            __syncthreads();
            float sum[8];
            for (int r = 0; r < 8; r++) sum[r] = 0.0f;
            for (int t = 0; t < group + 8; t++) {
                float value = x[t * (WIDE + 1) + mine];
                for (int r = 0; r < 8; r++)
                    if (t <= group + r) sum[r] += inverse[(group + r) * (CHUNK + 1) + t] * value;
            }
            for (int r = 0; r < 8; r++) {
                int t = group + r;
                if (t < n && from + mine < width) to[((long)(start + t) * hv + head) * width + from + mine] = sum[r];
            }
            __syncthreads();
        }
    }
}

// The part of the chunked form that carries the state from chunk to chunk, for the same row:
//   N = u - w M      O = diag(f_q) Q M + p N      M' = e^c_end M + (diag(f_k) K)^T N
// grid (value_dim / COLUMNS, value_heads), 256 threads,
// (key_dim * COLUMNS + CHUNK * (COLUMNS + 1) + CHUNK * (PANEL + 1)) floats of shared memory
extern "C" __global__ void gdn_chunk_scan(const float *mixed, const float *u, const float *w, const float *p, const float *f, unsigned long long state_at, int first, int tokens, Heads heads, float *out) {
    SHARED_MEMORY(shared)
    int dk = heads.key_dim, dv = heads.value_dim, head = blockIdx.y, hv = heads.value_heads;
    float *m = shared;                          // [dk][COLUMNS]
    float *errors = m + dk * COLUMNS;           // [CHUNK][COLUMNS + 1]
    float *x = errors + CHUNK * (COLUMNS + 1);  // [CHUNK][PANEL + 1]
    int tid = threadIdx.x, c = tid % COLUMNS, group = tid / COLUMNS; // eight groups of rows
    int column = blockIdx.x * COLUMNS + c;
    bool mine = column < dv;
    float *state = (float *)state_at + (long)head * dk * dv;
    for (int i = group; i < dk; i += 8) m[i * COLUMNS + c] = mine ? state[(long)i * dv + column] : 0.0f;
    long channels = channels_of(heads);
    long q_at = (long)key_head(heads, head) * dk;
    long k_at = (long)heads.key_heads * dk + q_at;

    for (int start = 0; start < tokens; start += CHUNK) {
        int n = min(CHUNK, tokens - start);
        const float *in = mixed + (long)(first + start) * channels;
        float error[8], answer[8];
        for (int r = 0; r < 8; r++) {
            int t = group * 8 + r;
            error[r] = t < n && mine ? u[((long)(start + t) * hv + head) * dv + column] : 0.0f;
            answer[r] = 0.0f;
        }
        // What the state answers to the errors' keys, and to the queries.
        for (int part = 0; part < 2; part++) {
            for (int from = 0; from < dk; from += PANEL) {
                __syncthreads();
                for (int i = tid; i < CHUNK * PANEL; i += 256) {
                    int t = i / PANEL, d = i % PANEL;
                    float value = 0.0f;
                    if (t < n && from + d < dk) {
                        long at = (long)(start + t) * hv + head;
                        value = part == 0 ? w[at * dk + from + d] : in[t * channels + q_at + from + d] * f[at * 3];
                    }
                    x[t * (PANEL + 1) + d] = value;
                }
                __syncthreads();
                for (int d = 0; d < PANEL && from + d < dk; d++) {
                    float value = m[(from + d) * COLUMNS + c];
                    for (int r = 0; r < 8; r++) {
                        float by = x[(group * 8 + r) * (PANEL + 1) + d] * value;
                        if (part == 0) error[r] -= by; else answer[r] += by;
                    }
                }
            }
        }
        for (int r = 0; r < 8; r++) errors[(group * 8 + r) * (COLUMNS + 1) + c] = error[r];
        for (int from = 0; from < CHUNK; from += PANEL) {
            __syncthreads();
            for (int i = tid; i < CHUNK * PANEL; i += 256) {
                int t = i / PANEL, d = i % PANEL;
                x[t * (PANEL + 1) + d] = t < n ? p[((long)(start + t) * hv + head) * CHUNK + from + d] : 0.0f;
            }
            __syncthreads();
            for (int d = 0; d < PANEL; d++) {
                float value = errors[(from + d) * (COLUMNS + 1) + c];
                for (int r = 0; r < 8; r++) answer[r] += x[(group * 8 + r) * (PANEL + 1) + d] * value;
            }
        }
        for (int r = 0; r < 8; r++) {
            int t = group * 8 + r;
            if (t < n && mine) out[((long)(first + start + t) * hv + head) * dv + column] = answer[r];
        }
        float keep = f[((long)(start + n - 1) * hv + head) * 3 + 2];
        for (int from = 0; from < dk; from += PANEL) {
            __syncthreads();
            for (int i = tid; i < CHUNK * PANEL; i += 256) {
                int t = i / PANEL, d = i % PANEL;
                bool there = t < n && from + d < dk;
                x[t * (PANEL + 1) + d] = there ? in[t * channels + k_at + from + d] * f[((long)(start + t) * hv + head) * 3 + 1] : 0.0f;
            }
            __syncthreads();
            for (int d = group; d < PANEL && from + d < dk; d += 8) {
                float sum = keep * m[(from + d) * COLUMNS + c];
                for (int t = 0; t < n; t++) sum += x[t * (PANEL + 1) + d] * errors[t * (COLUMNS + 1) + c];
                m[(from + d) * COLUMNS + c] = sum;
            }
        }
        __syncthreads();
    }
    for (int i = group; i < dk; i += 8)
        if (mine) state[(long)i * dv + column] = m[i * COLUMNS + c];
}
