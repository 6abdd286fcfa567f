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

# Probing the compiler by linking a program would build a C library for nothing.
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
