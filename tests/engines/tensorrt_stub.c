/* The symbols that TensorRT's Python bindings want from its libraries, which are not installed where the tests run.
   They return nothing: classes, enums and signatures can be looked at, nothing can be built. One file makes three
   libraries: compile it with -DINFER, -DPLUGIN or -DPARSER. */
#define NOTHING(name) void *name(void) { return 0; }

#ifdef INFER
NOTHING(createInferBuilder_INTERNAL)
NOTHING(createInferRefitter_INTERNAL)
NOTHING(createInferRuntime_INTERNAL)
NOTHING(getBuilderPluginRegistry)
NOTHING(getPluginRegistry)
int getInferLibVersion(void) { return 0; }
#endif

#ifdef PLUGIN
int initLibNvInferPlugins(void *logger, const char *names) { return 1; }
#endif

#ifdef PARSER
NOTHING(createNvOnnxParser_INTERNAL)
NOTHING(createNvOnnxParserRefitter_INTERNAL)
int getNvOnnxParserVersion(void) { return 0; }
#endif
