#!/bin/sh
# Runs gpu-check with the CUDA libraries of this machine's Python, unless NEURON_CUDA_LIBS names others, and with
# PyTorch beside it where that Python has it. Arguments are passed on; --help lists them.
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
python=${PYTHON:-python3}
if [ -z "$NEURON_CUDA_LIBS" ] && command -v "$python" >/dev/null 2>&1; then
    NEURON_CUDA_LIBS=$("$python" -c '
import glob, sys
print(":".join(found for folder in sys.path if folder for found in glob.glob(folder + "/nvidia/*/lib")))')
    export NEURON_CUDA_LIBS
fi
[ -n "$NEURON_CUDA_LIBS" ] && echo "CUDA libraries: $NEURON_CUDA_LIBS"
if [ "$#" -eq 0 ] && "$python" -c 'import torch; assert torch.cuda.is_available()' >/dev/null 2>&1; then
    set -- --python "$python"
fi
exec "$here/gpu-check" "$@"
