/* The page: three files of web/, part of the program, so that it needs no folder of its own. */
#include <string.h>

#include "clients/gateway/gateway.h"

#define PART(name, path)                                                                           \
    __asm__(".section .rodata\n"                                                                   \
            ".balign 16\n" #name "_begin:\n"                                                       \
            ".incbin \"clients/gateway/web/" path "\"\n" #name "_end:\n"                           \
            ".byte 0\n"                                                                            \
            ".text\n");                                                                            \
    extern const char name##_begin[], name##_end[]

PART(page_html, "index.html");
PART(page_js, "app.js");
PART(page_css, "style.css");

enum MHD_Result page_get(struct gateway *gateway, struct MHD_Connection *connection,
                         struct request *request)
{
    const struct {
        const char *url, *type, *begin, *end;
    } parts[] = {
        {"/", "text/html; charset=utf-8", page_html_begin, page_html_end},
        {"/app.js", "text/javascript; charset=utf-8", page_js_begin, page_js_end},
        {"/style.css", "text/css; charset=utf-8", page_css_begin, page_css_end},
    };
    size_t i = 0;

    while (i < 2 && strcmp(request->url, parts[i].url) != 0)
        i++;
    return reply_queue(gateway, connection, 200, parts[i].type,
                       MHD_create_response_from_buffer((size_t)(parts[i].end - parts[i].begin),
                                                       (void *)(uintptr_t)parts[i].begin,
                                                       MHD_RESPMEM_PERSISTENT));
}
