// A llama-server that builds in a second: the real one's library (/opt/llama) with a main of its own, which says of
// itself what it was built from.
#include <cstdio>
#include <cstring>
#include <unistd.h>

int llama_server(int argc, char ** argv);

// The library's own functions of these names give way to those of the program.
int llama_build_number(void) {
    return BUILD;
}

const char * llama_commit(void) {
    return COMMIT;
}

const char * llama_compiler(void) {
    return "a stand-in";
}

const char * llama_build_info(void) {
    static char text[128];
    snprintf(text, sizeof text, "b%d-%s", BUILD, COMMIT);
    return text;
}

static const char * refused = "";

int main(int argc, char ** argv) {
    while (access("/run/bed-asked", F_OK) == 0) {  // a test holds whoever asks
        usleep(50000);
    }
    for (int i = 1; i < argc; i++) {
        if (*refused && strcmp(argv[i], refused) == 0) {
            fprintf(stderr, "error: invalid argument: %s\n", argv[i]);
            return 1;
        }
    }
    return llama_server(argc, argv);
}
