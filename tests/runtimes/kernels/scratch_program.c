/* Takes memory as calls of many threads would, and frees it; test_sanitizers.py looks for what is left. */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "core/scratch.h"

#define CALLS 20

static void *calls(void *data) {
    (void)data;
    for (size_t size = 1; size < 300000; size *= 3) {
        char *memory = scratch_take(size);
        if (memory == NULL || (uintptr_t)memory % 64) return memory + 1;
        memset(memory, 1, size);
        scratch_give(memory);
    }
    return NULL;
}

int main(void) {
    pthread_t threads[4];
    void *held[CALLS], *wrong = NULL;
    for (int i = 0; i < CALLS; i++) held[i] = scratch_take(1000);
    for (int i = 0; i < CALLS; i++)
        for (int j = 0; j < i; j++)
            if (held[i] == held[j]) return 1; /* one memory for two calls */
    for (int i = 0; i < CALLS; i++) scratch_give(held[i]);
    void *again = scratch_take(900);
    int kept = 0;
    for (int i = 0; i < CALLS; i++) kept += held[i] == again;
    scratch_give(again);
    for (int i = 0; i < 4; i++) pthread_create(&threads[i], NULL, calls, NULL);
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], &wrong);
        if (wrong != NULL) return 2;
    }
    scratch_free();
    memset(held, 0, sizeof held);
    if (kept == 1) printf("done");
    return 0;
}
