// The kernels of gated_delta_net.cu as a library a test can call.
#define EMULATED_CUDA
#include "gated_delta_net.cu"

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
    return 1;
}
