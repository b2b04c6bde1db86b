/* A stand-in for libnvidia-ml.so.1, for tests: it shows the machine that the file named by FAKE_NVML describes, one
 * line per fact, read anew at every question:
 *
 *   driver 580.65.06 13000
 *   gpu GPU-30900000-... 0000:01:00.0 8 6 24576 20000 55 0 NVIDIA GeForce RTX 3090
 *   process 0 4711 512
 *
 * A gpu's fields: UUID, PCI address, compute capability (major, minor), memory in MiB (all, free), degrees, 1 with
 * MIG, name. A temperature of -1 is not told; a memory of 0 means that the card is lost. A process's: place of its
 * gpu, pid, MiB. Layouts and names are those of NVIDIA's published nvml.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7, NOT_LOADED = 9, LOST = 15 };

#define MOST 16

struct gpu {
    char uuid[80], bus[32], name[96];
    int major, minor, temperature, mig;
    unsigned long long total, free;
};

struct process {
    unsigned gpu, pid;
    unsigned long long bytes;
};

static struct gpu gpus[MOST];
static struct process processes[MOST];
static unsigned gpu_count, process_count;
static char driver[80];
static int cuda;

static int look(void) {
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[512];
    if (!file) return NOT_LOADED;
    gpu_count = process_count = 0;
    while (fgets(line, sizeof line, file)) {
        struct gpu gpu = {0};
        struct process process = {0};
        if (sscanf(line, "driver %79s %d", driver, &cuda) == 2) continue;
        if (gpu_count < MOST && sscanf(line, "gpu %79s %31s %d %d %llu %llu %d %d %95[^\n]", gpu.uuid, gpu.bus, &gpu.major,
                   &gpu.minor, &gpu.total, &gpu.free, &gpu.temperature, &gpu.mig, gpu.name) == 9) {
            gpu.total <<= 20;
            gpu.free <<= 20;
            gpus[gpu_count++] = gpu;
        }
        if (process_count < MOST && sscanf(line, "process %u %u %llu", &process.gpu, &process.pid, &process.bytes) == 3) {
            process.bytes <<= 20;
            processes[process_count++] = process;
        }
    }
    fclose(file);
    return SUCCESS;
}

/* A handle is a place in the list plus one, so that none is null. */
static struct gpu *of(void *handle) { return &gpus[(size_t)handle - 1]; }

static int text(char *into, unsigned room, const char *from) {
    if (strlen(from) >= room) return INSUFFICIENT_SIZE;
    strcpy(into, from);
    return SUCCESS;
}

int nvmlInit_v2(void) { return look(); }
int nvmlShutdown(void) { return SUCCESS; }

int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    int status = look();
    return status ? status : text(version, length, driver);
}

int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    *version = cuda;
    return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = gpu_count;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    if (index >= gpu_count) return INVALID_ARGUMENT;
    if (gpus[index].total == 0) return LOST;
    *device = (void *)(size_t)(index + 1);
    return SUCCESS;
}

int nvmlDeviceGetName(void *device, char *name, unsigned length) { return text(name, length, of(device)->name); }
int nvmlDeviceGetUUID(void *device, char *uuid, unsigned length) { return text(uuid, length, of(device)->uuid); }

struct memory {
    unsigned version;
    unsigned long long total, reserved, free, used;
};

int nvmlDeviceGetMemoryInfo_v2(void *device, struct memory *memory) {
    memory->total = of(device)->total;
    memory->free = of(device)->free;
    memory->reserved = 0;
    memory->used = memory->total - memory->free;
    return SUCCESS;
}

int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
    *major = of(device)->major;
    *minor = of(device)->minor;
    return SUCCESS;
}

int nvmlDeviceGetMigMode(void *device, unsigned *current, unsigned *pending) {
    if (of(device)->major < 8) return NOT_SUPPORTED;
    *current = *pending = (unsigned)of(device)->mig;
    return SUCCESS;
}

int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *temperature) {
    (void)sensor;
    if (of(device)->temperature < 0) return NOT_SUPPORTED;
    *temperature = (unsigned)of(device)->temperature;
    return SUCCESS;
}

struct pci {
    char legacy[16];
    unsigned domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
};

int nvmlDeviceGetPciInfo_v3(void *device, struct pci *pci) {
    memset(pci, 0, sizeof *pci);
    return text(pci->bus_id, sizeof pci->bus_id, of(device)->bus);
}

struct process_info {
    unsigned pid;
    unsigned long long bytes;
    unsigned gpu_instance, compute_instance;
};

int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, struct process_info *infos) {
    unsigned room = *count, found = 0, place;
    for (place = 0; place < process_count; place++) {
        if ((size_t)device != processes[place].gpu + 1) continue;
        if (infos && found < room) {
            struct process_info info = {processes[place].pid, processes[place].bytes, ~0u, ~0u};
            infos[found] = info;
        }
        found++;
    }
    *count = found;
    return infos && found <= room ? SUCCESS : found ? INSUFFICIENT_SIZE : SUCCESS;
}
