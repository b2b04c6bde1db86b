// The kernels of this folder as a library a test can call.
#define EMULATED_CUDA
#include "emulated_cuda.h"
namespace gated_delta_net {
#include "gated_delta_net.cu"
}
namespace decode {
#include "decode.cu"
}
using namespace gated_delta_net;
using namespace decode;

#define KERNEL(name) \
    if (strcmp(kernel, #name) == 0) \
        return emulated_launch([](void **a) { emulated_call(name, a); }, grid, threads, shared_bytes / 4, reversed != 0, arguments) ? 0 : 2;

extern "C" int emulate(const char *kernel, const unsigned *grid, unsigned threads, unsigned shared_bytes, int reversed, void **arguments) {
    KERNEL(gdn_conv_step)
    KERNEL(gdn_conv)
    KERNEL(gdn_conv_keep)
    KERNEL(gdn_gates)
    KERNEL(gdn_recurrent)
    KERNEL(gdn_chunk_prepare)
    KERNEL(gdn_chunk_scan)
    KERNEL(decode_attend_f32)
    KERNEL(decode_attend_bf16)
    KERNEL(decode_merge_f32)
    KERNEL(decode_merge_bf16)
    KERNEL(gate_f32)
    KERNEL(gate_bf16)
    KERNEL(route_f32)
    KERNEL(route_bf16)
    KERNEL(expert_in_f32)
    KERNEL(expert_in_bf16)
    KERNEL(expert_out_f32)
    KERNEL(expert_out_bf16)
    return 1;
}
