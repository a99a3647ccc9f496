/*
 * A stand-in for libnvidia-ml.so.1 on hosts without a card: it answers the real pynvml from a small text file
 * that a test may rewrite at any moment; every call reads it afresh.
 *
 * The file is $HOLDFAST_FAKE_NVML, else /run/fake-nvml.conf; one "key = value" per line, all optional:
 *
 *   behaviour = ok          everything answers
 *               auto        as the real library: compares the version in its own file name with the loaded
 *                           module's (/sys/module/nvidia/version): not loaded, mismatch, or ok
 *               mismatch    nvmlInit returns 18 (driver/library version mismatch)
 *               not_loaded  nvmlInit returns 9 (driver not loaded)
 *               lost        nvmlInit works, every question about a card returns 15 (GPU is lost)
 *               hang        nvmlInit sleeps hang_s seconds, then works; signals interrupt nothing
 *               hang_d      the same in state D, as a stuck driver looks (only SIGKILL still ends it)
 *               hang_device nvmlInit works, the questions about a card hang as above, asleep
 *               error:N     nvmlInit returns N
 *   driver = 550.54.15      hang_s = 3600            gpus = 1          lost_gpu = INDEX
 *   uuid = GPU-…            the first card's; further cards count up its last digit
 *   name = NVIDIA …         memory_total_mib = 24564 memory_used_mib = 512
 *   processes = PID:MIB,…   temperature = 41         utilization = 0   clock_reasons = 1
 *   recovery_action = 0     remap_pending = 0        remap_failed = 0  ecc_uncorrected = 0
 *
 * Structures and numbers: nvml.h of NVIDIA's go-nvml, as in nvidia-ml-py 13.
 * Build: gcc -shared -fPIC -O1 -Wl,-soname,libnvidia-ml.so.1 -o libnvidia-ml.so.1 nvml.c -ldl
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define SUCCESS 0
#define UNINITIALIZED 1
#define INVALID_ARGUMENT 2
#define NOT_SUPPORTED 3
#define NOT_FOUND 6
#define INSUFFICIENT_SIZE 7
#define DRIVER_NOT_LOADED 9
#define GPU_IS_LOST 15
#define LIB_RM_VERSION_MISMATCH 18
#define MAX_GPUS 16
#define MIB 1048576ULL
#define EXPORT __attribute__((visibility("default")))

typedef struct { int index; } device;

static device devices[MAX_GPUS];
static int initialized;

/* Copy the value of a key, or the fallback. */
static char *setting(const char *key, const char *fallback, char *value, size_t size)
{
    const char *path = getenv("HOLDFAST_FAKE_NVML");
    FILE *file = fopen(path ? path : "/run/fake-nvml.conf", "re");
    char line[1024];
    snprintf(value, size, "%s", fallback);
    while (file && fgets(line, sizeof line, file)) {
        char *equals = strchr(line, '=');
        if (!equals || line[0] == '#')
            continue;
        *equals = '\0';
        char *name = line + strspn(line, " \t"), *text = equals + 1 + strspn(equals + 1, " \t");
        name[strcspn(name, " \t")] = '\0';
        for (size_t end = strlen(text); end && strchr(" \t\r\n", text[end - 1]); end--)
            text[end - 1] = '\0';
        if (!strcmp(name, key))
            snprintf(value, size, "%s", text);
    }
    if (file)
        fclose(file);
    return value;
}

static long long number(const char *key, const char *fallback)
{
    char value[256];
    return strtoll(setting(key, fallback, value, sizeof value), NULL, 0);
}

static void sleep_through(long long seconds)
{
    struct timespec left = {.tv_sec = seconds};
    while (nanosleep(&left, &left) == -1 && errno == EINTR)
        ;
}

/* The parent of a vfork waits uninterruptibly for its child: state D without a driver. */
static void sleep_in_state_d(long long seconds)
{
    pid_t child = vfork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        sleep_through(seconds);
        _exit(0);
    }
}

static int first_line(const char *path, char *text, int size)
{
    FILE *file = fopen(path, "re");
    int found = file && fgets(text, size, file) != NULL;
    if (file)
        fclose(file);
    if (found)
        text[strcspn(text, "\r\n")] = '\0';
    return found;
}

/* The version in this library's own file name, as libnvidia-ml.so.550.54.15. */
static const char *own_version(char *path)
{
    Dl_info info;
    const char *mark = NULL;
    if (dladdr((void *)own_version, &info) && realpath(info.dli_fname, path))
        mark = strstr(path, ".so.");
    return mark ? mark + 4 : "";
}

static int init(void)
{
    char behaviour[256], loaded[256], path[PATH_MAX];
    setting("behaviour", "ok", behaviour, sizeof behaviour);
    if (!strcmp(behaviour, "mismatch"))
        return LIB_RM_VERSION_MISMATCH;
    if (!strcmp(behaviour, "not_loaded"))
        return DRIVER_NOT_LOADED;
    if (!strncmp(behaviour, "error:", 6))
        return atoi(behaviour + 6);
    if (!strcmp(behaviour, "auto")) {
        if (!first_line("/sys/module/nvidia/version", loaded, sizeof loaded))
            return DRIVER_NOT_LOADED;
        if (strcmp(loaded, own_version(path)))
            return LIB_RM_VERSION_MISMATCH;
    }
    if (!strcmp(behaviour, "hang"))
        sleep_through(number("hang_s", "3600"));
    if (!strcmp(behaviour, "hang_d"))
        sleep_in_state_d(number("hang_s", "3600"));
    initialized++;
    return SUCCESS;
}

/* What every question about a card answers first. */
static int ask(const device *card)
{
    char behaviour[256];
    if (!initialized)
        return UNINITIALIZED;
    if (!card || card < devices || card >= devices + MAX_GPUS)
        return INVALID_ARGUMENT;
    setting("behaviour", "ok", behaviour, sizeof behaviour);
    if (!strcmp(behaviour, "hang_device"))
        sleep_through(number("hang_s", "3600"));
    if (!strcmp(behaviour, "lost") || number("lost_gpu", "-1") == card->index)
        return GPU_IS_LOST;
    return SUCCESS;
}

static int text(char *buffer, unsigned size, const char *value)
{
    if (!buffer || strlen(value) >= size)
        return INSUFFICIENT_SIZE;
    strcpy(buffer, value);
    return SUCCESS;
}

EXPORT int nvmlInit_v2(void) { return init(); }
EXPORT int nvmlInit(void) { return init(); }
EXPORT int nvmlInitWithFlags(unsigned flags) { (void)flags; return init(); }

EXPORT int nvmlShutdown(void)
{
    if (!initialized)
        return UNINITIALIZED;
    initialized--;
    return SUCCESS;
}

EXPORT const char *nvmlErrorString(int code)
{
    switch (code) {
    case SUCCESS: return "Success";
    case UNINITIALIZED: return "Uninitialized";
    case INVALID_ARGUMENT: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case 4: return "Insufficient Permissions";
    case NOT_FOUND: return "Not Found";
    case INSUFFICIENT_SIZE: return "Insufficient Size";
    case DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case 10: return "Timeout";
    case GPU_IS_LOST: return "GPU is lost";
    case 16: return "GPU requires restart";
    case LIB_RM_VERSION_MISMATCH: return "Driver/library version mismatch";
    default: return "Unknown Error";
    }
}

EXPORT int nvmlSystemGetDriverVersion(char *version, unsigned length)
{
    char value[256], loaded[256] = "550.54.15";
    first_line("/sys/module/nvidia/version", loaded, sizeof loaded);
    return initialized ? text(version, length, setting("driver", loaded, value, sizeof value)) : UNINITIALIZED;
}

EXPORT int nvmlSystemGetNVMLVersion(char *version, unsigned length)
{
    char value[256], path[PATH_MAX];
    snprintf(value, sizeof value, "12.%s", own_version(path));
    return text(version, length, value);
}

EXPORT int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = 12040; return SUCCESS; }
EXPORT int nvmlSystemGetCudaDriverVersion(int *version) { return nvmlSystemGetCudaDriverVersion_v2(version); }

EXPORT int nvmlDeviceGetCount_v2(unsigned *count)
{
    long long gpus = number("gpus", "1");
    *count = gpus > MAX_GPUS ? MAX_GPUS : (unsigned)gpus;
    return initialized ? SUCCESS : UNINITIALIZED;
}

EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned index, device **card)
{
    unsigned count = 0;
    if (nvmlDeviceGetCount_v2(&count) != SUCCESS)
        return UNINITIALIZED;
    if (index >= count)
        return INVALID_ARGUMENT;
    devices[index].index = (int)index;
    *card = &devices[index];
    return ask(*card);
}

EXPORT int nvmlDeviceGetUUID(device *card, char *uuid, unsigned length)
{
    char value[256];
    int code = ask(card);
    if (code)
        return code;
    setting("uuid", "GPU-5eed0000-fa4e-4a11-9000-000000000000", value, sizeof value);
    char *last = value + strlen(value) - 1;
    *last = "0123456789abcdef"[(strtol(last, NULL, 16) + card->index) % 16];
    return text(uuid, length, value);
}

EXPORT int nvmlDeviceGetHandleByUUID(const char *uuid, device **card)
{
    char value[256];
    unsigned count = 0;
    nvmlDeviceGetCount_v2(&count);
    for (unsigned index = 0; index < count; index++)
        if (!nvmlDeviceGetHandleByIndex_v2(index, card) && !nvmlDeviceGetUUID(*card, value, sizeof value) &&
            !strcmp(value, uuid))
            return SUCCESS;
    return NOT_FOUND;
}

EXPORT int nvmlDeviceGetIndex(device *card, unsigned *index) { *index = (unsigned)card->index; return ask(card); }
EXPORT int nvmlDeviceGetMinorNumber(device *card, unsigned *minor) { *minor = (unsigned)card->index; return ask(card); }

EXPORT int nvmlDeviceGetName(device *card, char *name, unsigned length)
{
    char value[256];
    int code = ask(card);
    return code ? code : text(name, length, setting("name", "NVIDIA Imaginary 24GB", value, sizeof value));
}

EXPORT int nvmlDeviceGetCudaComputeCapability(device *card, int *major, int *minor)
{
    char value[16];
    if (sscanf(setting("compute_capability", "8.9", value, sizeof value), "%d.%d", major, minor) != 2)
        return NOT_SUPPORTED;
    return ask(card);
}

typedef struct { unsigned long long total, free, used; } memory_v1;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2;

EXPORT int nvmlDeviceGetMemoryInfo(device *card, memory_v1 *memory)
{
    memory->total = (unsigned long long)number("memory_total_mib", "24564") * MIB;
    memory->used = (unsigned long long)number("memory_used_mib", "512") * MIB;
    memory->free = memory->total - memory->used;
    return ask(card);
}

EXPORT int nvmlDeviceGetMemoryInfo_v2(device *card, memory_v2 *memory)
{
    memory_v1 seen;
    int code = nvmlDeviceGetMemoryInfo(card, &seen);
    memory->total = seen.total, memory->used = seen.used, memory->free = seen.free, memory->reserved = 0;
    return code;
}

typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } process;

static int running(device *card, unsigned *count, process *found)
{
    char value[1024], *rest = value, *word;
    process list[64];
    unsigned seen = 0;
    int code = ask(card);
    if (code)
        return code;
    setting("processes", "", value, sizeof value);
    while ((word = strsep(&rest, ",")) && seen < 64) {
        unsigned long long mib = 0;
        if (sscanf(word, " %u:%llu", &list[seen].pid, &mib) >= 1) {
            list[seen].used = mib * MIB;
            list[seen].gpu_instance = list[seen].compute_instance = 0xFFFFFFFF;
            seen++;
        }
    }
    code = *count < seen || (seen && !found) ? INSUFFICIENT_SIZE : SUCCESS;
    *count = seen;
    if (!code && seen)
        memcpy(found, list, seen * sizeof *list);
    return code;
}

EXPORT int nvmlDeviceGetComputeRunningProcesses_v3(device *c, unsigned *n, process *p) { return running(c, n, p); }
EXPORT int nvmlDeviceGetComputeRunningProcesses_v2(device *c, unsigned *n, process *p) { return running(c, n, p); }
EXPORT int nvmlDeviceGetGraphicsRunningProcesses_v3(device *card, unsigned *count, process *found)
{
    (void)found;
    *count = 0;
    return ask(card);
}

EXPORT int nvmlDeviceGetTemperature(device *card, int sensor, unsigned *celsius)
{
    (void)sensor;
    *celsius = (unsigned)number("temperature", "41");
    return ask(card);
}

typedef struct { unsigned version; int sensor; int celsius; } temperature_v1;

EXPORT int nvmlDeviceGetTemperatureV(device *card, temperature_v1 *answer)
{
    answer->celsius = (int)number("temperature", "41");
    return ask(card);
}

EXPORT int nvmlDeviceGetUtilizationRates(device *card, unsigned *rates)
{
    rates[0] = (unsigned)number("utilization", "0"), rates[1] = 0;
    return ask(card);
}

EXPORT int nvmlDeviceGetCurrentClocksEventReasons(device *card, unsigned long long *reasons)
{
    *reasons = (unsigned long long)number("clock_reasons", "1");
    return ask(card);
}
EXPORT int nvmlDeviceGetCurrentClocksThrottleReasons(device *card, unsigned long long *reasons)
{
    return nvmlDeviceGetCurrentClocksEventReasons(card, reasons);
}

EXPORT int nvmlDeviceGetTotalEccErrors(device *card, int kind, int counter, unsigned long long *count)
{
    (void)counter;
    *count = kind == 1 ? (unsigned long long)number("ecc_uncorrected", "0") : 0;
    return ask(card);
}

EXPORT int nvmlDeviceGetRemappedRows(device *card, unsigned *ok, unsigned *bad, unsigned *pending, unsigned *failed)
{
    *ok = *bad = 0, *pending = (unsigned)number("remap_pending", "0"), *failed = (unsigned)number("remap_failed", "0");
    return ask(card);
}

typedef struct {
    char bus_id_legacy[16];
    unsigned domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
} pci;

EXPORT int nvmlDeviceGetPciInfo_v3(device *card, pci *answer)
{
    int code = ask(card);
    if (code)
        return code;
    memset(answer, 0, sizeof *answer);
    answer->bus = (unsigned)card->index + 1, answer->device_id = 0x268410de;
    snprintf(answer->bus_id_legacy, sizeof answer->bus_id_legacy, "0000:%02X:00.0", answer->bus & 0xff);
    snprintf(answer->bus_id, sizeof answer->bus_id, "00000000:%02X:00.0", answer->bus & 0xff);
    return SUCCESS;
}

typedef struct {
    uint32_t field, scope;
    int64_t at, latency;
    int type, code;
    uint64_t value;
} field_value;

/* Field 230 is the recommended recovery action; nothing else is known here. */
EXPORT int nvmlDeviceGetFieldValues(device *card, int count, field_value *values)
{
    for (int index = 0; index < count; index++) {
        values[index].code = values[index].field == 230 ? SUCCESS : NOT_SUPPORTED;
        values[index].type = 1;
        values[index].value = (uint64_t)number("recovery_action", "0");
    }
    return ask(card);
}
