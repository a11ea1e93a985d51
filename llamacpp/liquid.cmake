# Settings of our own for upstream's build, read by CMake right after its first project() (CMAKE_PROJECT_<name>_INCLUDE).
# No patch is needed for them, and a user's CFLAGS, CMAKE_C_FLAGS and CMAKE_ARGS stay as they are.

# A virtual machine may advertise AMX and then kill the process that uses it, so native builds leave AMX instructions out
# unless they are asked for; AVX2, AVX-512 and VNNI stay. ggml compiles its AMX kernels only where the compiler says so.
option(LIQUID_AMX "let the compiler use AMX instructions" OFF)

if (NOT LIQUID_AMX AND NOT MSVC AND CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|amd64|AMD64|i[3-6]86)$")
    include(CheckCCompilerFlag)
    include(CheckCXXCompilerFlag)
    foreach (feature IN ITEMS tile int8 bf16)
        check_c_compiler_flag(-mno-amx-${feature} LIQUID_C_NO_AMX_${feature})
        check_cxx_compiler_flag(-mno-amx-${feature} LIQUID_CXX_NO_AMX_${feature})
        if (LIQUID_C_NO_AMX_${feature})
            add_compile_options($<$<COMPILE_LANGUAGE:C>:-mno-amx-${feature}>)
        endif()
        if (LIQUID_CXX_NO_AMX_${feature})
            add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-mno-amx-${feature}>)
        endif()
    endforeach()
endif()

# The image library's many small model files take most of its time in common headers: compile them in batches, as upstream
# does for the models of the main library.
function(liquid_batch_mtmd)
    if (NOT TARGET mtmd)
        return()
    endif()
    get_target_property(alone mtmd SOURCES)
    list(FILTER alone EXCLUDE REGEX "^models/")
    get_target_property(folder mtmd SOURCE_DIR)
    list(TRANSFORM alone PREPEND "${folder}/")
    set_source_files_properties(${alone} TARGET_DIRECTORY mtmd PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
    set_target_properties(mtmd PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 16)
endfunction()
cmake_language(DEFER CALL liquid_batch_mtmd)
