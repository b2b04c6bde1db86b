/* Finds one CUDA library when it is first needed, for the trampolines of this archive.
 *
 * Compiled once per library, after a generated header that defines:
 *   SHIM(x)        x, made unique for this library
 *   SHIM_NAME      what people call the library
 *   SHIM_SONAME    the file to open
 *   SHIM_STEM      the file's name up to its version, to recognise other versions by
 *   SHIM_NEEDED    oldest version that will do, in the library's own counting
 *   SHIM_ABSENT    status returned by every entry point while the library is missing
 *   SHIM_UNKNOWN   status returned by an entry point that the library lacks
 *   SHIM_VERSION_* how the library tells its version
 *   SHIM_NAMES     names of the entry points; SHIM_ANSWERS what each returns: 's'tatus, 't'ext, 'n'umber
 *   SHIM_COUNT     how many there are
 *   SHIM_REMEDY    what to do when the library is missing
 * and links with a table of SHIM_COUNT pointers that starts out pointing at this file's slow path.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <glob.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HIDDEN __attribute__((visibility("hidden")))

/* What a plugin may ask. The layout is repeated by whoever asks; add at the end only. */
struct neuron_shim {
    const char *name;     /* e.g. "cuBLAS" */
    const char *path;     /* the file in use; null when there is none */
    const char *sentence; /* which file and version is in use, or what is missing and what to do */
    int found;            /* version of the file in use, in the library's own counting; 0 when unknown */
    int needed;           /* oldest version that will do */
};

extern void *SHIM(table)[SHIM_COUNT] HIDDEN;

static const char *const names[SHIM_COUNT] = {SHIM_NAMES};
static const char answers[] = SHIM_ANSWERS;

static pthread_once_t once = PTHREAD_ONCE_INIT;
static void *library;
static char path[PATH_MAX];
static char other[PATH_MAX];
static char sentence[3 * PATH_MAX];
static struct neuron_shim report = {SHIM_NAME, NULL, sentence, 0, SHIM_NEEDED};

static int absent_status(void) { return SHIM_ABSENT; }
static int unknown_status(void) { return SHIM_UNKNOWN; }
static size_t no_number(void) { return 0; }
static const char *no_text(void) { return SHIM_NAME " is not available"; }

/* Tries one folder; remembers a file of another version that lies there instead. */
static void try_folder(const char *folder, size_t length) {
    char file[PATH_MAX];
    glob_t found;
    if (library || length == 0 || length + 64 > sizeof file) return;
    snprintf(file, sizeof file, "%.*s/%s", (int)length, folder, SHIM_SONAME);
    library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (library) {
        memcpy(path, file, strlen(file) + 1);
        return;
    }
    if (other[0]) return;
    snprintf(file, sizeof file, "%.*s/%s.so.*", (int)length, folder, SHIM_STEM);
    if (glob(file, GLOB_NOSORT, NULL, &found) != 0) return;
    if (found.gl_pathc > 0) snprintf(other, sizeof other, "%s", found.gl_pathv[0]);
    globfree(&found);
}

static void try_named_folders(void) {
    const char *rest = getenv("NEURON_CUDA_LIBS");
    while (rest && *rest) {
        size_t length = strcspn(rest, ":");
        try_folder(rest, length);
        rest += length + (rest[length] == ':');
    }
}

/* `cuda` beside the plugin, beside the folder of its build, and the plugin's own folder. */
static void try_around_plugin(void) {
    Dl_info self;
    char own[PATH_MAX], beside[PATH_MAX + 16];
    char *slash;
    if (!dladdr((void *)try_around_plugin, &self) || !self.dli_fname || !realpath(self.dli_fname, own)) return;
    slash = strrchr(own, '/');
    if (!slash) return;
    *slash = '\0';
    snprintf(beside, sizeof beside, "%s/cuda", own);
    try_folder(beside, strlen(beside));
    snprintf(beside, sizeof beside, "%s/../cuda", own);
    try_folder(beside, strlen(beside));
    try_folder(own, strlen(own));
}

/* LD_LIBRARY_PATH, the system's cache, or a copy that is loaded already. */
static void try_system(void) {
    Dl_info found;
    void *symbol;
    if (library) return;
    library = dlopen(SHIM_SONAME, RTLD_NOW | RTLD_LOCAL);
    if (!library) return;
    symbol = dlsym(library, names[0]);
    if (symbol && dladdr(symbol, &found) && found.dli_fname) snprintf(path, sizeof path, "%s", found.dli_fname);
    else snprintf(path, sizeof path, "%s", SHIM_SONAME);
}

static int version(void) {
#if defined(SHIM_VERSION_STATUS) /* status f(int *) */
    int (*ask)(int *) = (int (*)(int *))dlsym(library, SHIM_VERSION_STATUS);
    int number = 0;
    return ask && ask(&number) == 0 ? number : 0;
#elif defined(SHIM_VERSION_PAIR) /* status f(int *major, int *minor) */
    int (*ask)(int *, int *) = (int (*)(int *, int *))dlsym(library, SHIM_VERSION_PAIR);
    int major = 0, minor = 0;
    return ask && ask(&major, &minor) == 0 ? major * 1000 + minor * 10 : 0;
#elif defined(SHIM_VERSION_PROPERTY) /* status f(property, int *), with 0 major, 1 minor, 2 patch */
    int (*ask)(int, int *) = (int (*)(int, int *))dlsym(library, SHIM_VERSION_PROPERTY);
    int major = 0, minor = 0, patch = 0;
    if (!ask || ask(0, &major) || ask(1, &minor) || ask(2, &patch)) return 0;
    return major * 10000 + minor * 100 + patch;
#else /* size_t f(void) */
    size_t (*ask)(void) = (size_t (*)(void))dlsym(library, SHIM_VERSION_NUMBER);
    return ask ? (int)ask() : 0;
#endif
}

static void describe(void) {
    if (!library && other[0]) {
        snprintf(sentence, sizeof sentence, "%s is needed, but only %s was found; %s", SHIM_SONAME, other, SHIM_REMEDY);
    } else if (!library) {
        snprintf(sentence, sizeof sentence,
                 "%s was not found (looked in NEURON_CUDA_LIBS, beside the plugin and where the system keeps libraries); %s",
                 SHIM_SONAME, SHIM_REMEDY);
    } else if (report.found && report.found < SHIM_NEEDED) {
        snprintf(sentence, sizeof sentence, "%s is version %d, and %d or newer is needed; %s", path, report.found,
                 SHIM_NEEDED, SHIM_REMEDY);
    } else {
        snprintf(sentence, sizeof sentence, "%s, version %d", path, report.found);
    }
}

static void find(void) {
    static const char *const usual[] = {"/usr/local/cuda/lib64", "/usr/local/nvidia/lib64", "/usr/lib/x86_64-linux-gnu",
                                        "/usr/lib64", "/usr/lib/wsl/lib"};
    size_t i;
    try_named_folders();
    try_around_plugin();
    try_system();
    for (i = 0; i < sizeof usual / sizeof *usual; i++) try_folder(usual[i], strlen(usual[i]));
    if (library) {
        report.path = path;
        report.found = version();
    }
    describe();
}

/* Which library is in use, looking for it if nobody has yet. */
HIDDEN const struct neuron_shim *SHIM(report)(void) {
    pthread_once(&once, find);
    return &report;
}

/* Where entry point `index` leads from now on. */
HIDDEN void *SHIM(resolve)(size_t index) {
    void *target;
    pthread_once(&once, find);
    target = library ? dlsym(library, names[index]) : NULL;
    if (!target) {
        switch (answers[index]) {
        case 't': target = (void *)no_text; break;
        case 'n': target = (void *)no_number; break;
        default: target = library ? (void *)unknown_status : (void *)absent_status;
        }
    }
    __atomic_store_n(&SHIM(table)[index], target, __ATOMIC_RELEASE);
    return target;
}
