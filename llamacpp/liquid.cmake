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
