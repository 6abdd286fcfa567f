# Toolchain file: cross-compiles static programs with the pip-installable `ziglang`, one compiler for every triple.
# Needs EDGEKIT_TRIPLE (x86_64-linux-musl, aarch64-linux-musl) and EDGEKIT_PYTHON_EXE (a Python that has ziglang).
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES EDGEKIT_TRIPLE EDGEKIT_PYTHON_EXE)
set(EDGEKIT_ZIG ON)
set(CMAKE_SYSTEM_NAME Linux)
string(REGEX MATCH "^[^-]+" CMAKE_SYSTEM_PROCESSOR "${EDGEKIT_TRIPLE}")
set(CMAKE_CXX_COMPILER "${EDGEKIT_PYTHON_EXE}" -m ziglang c++ -target "${EDGEKIT_TRIPLE}")

# The archiver is a subcommand of the same module; CMake wants one program, so the rules spell it out.
set(CMAKE_AR "${EDGEKIT_PYTHON_EXE}")
set(CMAKE_CXX_ARCHIVE_CREATE "<CMAKE_AR> -m ziglang ar qc <TARGET> <OBJECTS>")
set(CMAKE_CXX_ARCHIVE_APPEND "<CMAKE_AR> -m ziglang ar q <TARGET> <OBJECTS>")
set(CMAKE_CXX_ARCHIVE_FINISH "<CMAKE_AR> -m ziglang ranlib <TARGET>")

# 64 KiB pages cover every ARM kernel configuration: 4 KiB, 16 KiB (Pi 5, new phones) and 64 KiB.
set(CMAKE_EXE_LINKER_FLAGS_INIT "-static -s -Wl,-z,max-page-size=65536")

# What CMake would find out by linking a program, which makes zig build a C and a C++ library that nothing else uses.
set(CMAKE_CXX_COMPILER_ID Clang)
set(CMAKE_CXX_COMPILER_ID_RUN ON)
set(CMAKE_CXX_COMPILER_VERSION 22.1)
set(CMAKE_CXX_COMPILER_FRONTEND_VARIANT GNU)
set(CMAKE_CXX_COMPILER_FORCED ON)
set(CMAKE_CXX_STANDARD_COMPUTED_DEFAULT 17)
set(CMAKE_CXX_EXTENSIONS_COMPUTED_DEFAULT ON)
set(CMAKE_CXX_COMPILE_FEATURES cxx_std_20)
set(CMAKE_SIZEOF_VOID_P 8)
set(CMAKE_HAVE_LIBC_PTHREAD ON)
