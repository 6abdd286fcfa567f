# Cross-compiles edgekit-run for every triple and installs it as edgekit/runners/<triple>/edgekit-run.
include(ExternalProject)

foreach(triple IN LISTS EDGEKIT_TRIPLES)
  ExternalProject_Add(
    runner-${triple}
    SOURCE_DIR ${CMAKE_SOURCE_DIR}
    BINARY_DIR ${CMAKE_BINARY_DIR}/runner-${triple}
    CMAKE_GENERATOR Ninja
    CMAKE_ARGS
      -DCMAKE_TOOLCHAIN_FILE=${CMAKE_SOURCE_DIR}/kernels/cmake/zig.cmake
      -DEDGEKIT_TRIPLE=${triple}
      -DEDGEKIT_PYTHON_EXE=${Python_EXECUTABLE}
      -DCMAKE_MAKE_PROGRAM=${CMAKE_MAKE_PROGRAM}
      -DCMAKE_BUILD_TYPE=Release
      -DEDGEKIT_PYTHON=OFF
      -DEDGEKIT_RUNNER=ON
    BUILD_ALWAYS ON
    USES_TERMINAL_BUILD ON
    INSTALL_COMMAND ""
    COMMENT "Cross-compiling edgekit-run for ${triple} (the first time this builds a C library: about a minute)")
  install(PROGRAMS ${CMAKE_BINARY_DIR}/runner-${triple}/devices/runner/edgekit-run
          DESTINATION edgekit/runners/${triple})
endforeach()
