// The instruction sets of this processor and operating system. Compiled for the baseline.
extern "C" __attribute__((visibility("default"))) int hpcgnn_supports(int level) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl");
    const bool pairs = avx512 && __builtin_cpu_supports("avx512bf16");
    return level == 0 || (level == 1 && avx2) || (level == 2 && avx512) || (level == 3 && pairs);
#else
    return level == 0;
#endif
}
