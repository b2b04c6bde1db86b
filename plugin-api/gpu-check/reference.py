"""What PyTorch makes of this GPU: memory copies, bf16 matrix products, and a transformers model of Qwen3-8B's shape.

Prints one line of JSON. Needs torch with CUDA; the model part needs transformers and is left out without it.
"""

import json
import sys
import time

import torch


def best(action, rounds):
    times = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        action()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def median(times):
    return sorted(times)[len(times) // 2]


def device_rates(result):
    source = torch.zeros(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    result["copy_bytes_per_s"] = 2 * source.numel() / best(lambda: target.copy_(source), 10)
    size = 8192
    left = torch.randn(size, size, dtype=torch.bfloat16, device="cuda")
    right = torch.randn(size, size, dtype=torch.bfloat16, device="cuda")
    result["matrix_flops_per_s"] = 2 * size**3 / best(lambda: left @ right, 20)


def model_rates(result, tiny):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    sizes = (
        dict(hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=8,
             num_key_value_heads=4, head_dim=32, vocab_size=512)
        if tiny
        else dict(hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32,
                  num_key_value_heads=8, head_dim=128, vocab_size=151936)
    )
    prompt, steps = (64, 8) if tiny else (2048, 64)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = Qwen3ForCausalLM(Qwen3Config(tie_word_embeddings=False, **sizes)).eval()
    tokens = (torch.arange(prompt, device="cuda") * 7 % 500)[None]
    with torch.inference_mode():
        model(tokens, logits_to_keep=1)
        result["prefill_tokens_per_s"] = prompt / best(lambda: model(tokens, logits_to_keep=1), 5)
        answer = model(tokens, use_cache=True, logits_to_keep=1)
        times = []
        for _ in range(steps):
            token = answer.logits[:, -1:].argmax(-1)
            torch.cuda.synchronize()
            start = time.perf_counter()
            answer = model(token, past_key_values=answer.past_key_values, use_cache=True)
            torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    result["decode_tokens_per_s"] = 1 / median(times)


def main():
    result = {"torch": torch.__version__, "device": torch.cuda.get_device_name()}
    device_rates(result)
    try:
        model_rates(result, "--tiny" in sys.argv)
    except Exception as error:  # the device's rates are worth having without the model's
        result["model"] = f"not measured: {error}"
    print(json.dumps(result))


main()
