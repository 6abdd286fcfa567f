# Cross-compiles edgekit-run and the operators for ONNX Runtime for every triple and installs both into
# edgekit/runners/<triple>/.
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
    COMMENT "Cross-compiling edgekit-run for ${triple} (the first time this builds two C libraries: about two minutes)")
  install(PROGRAMS ${CMAKE_BINARY_DIR}/runner-${triple}/devices/runner/edgekit-run
                   ${CMAKE_BINARY_DIR}/runner-${triple}/kernels/adapters/onnxruntime/libedgekit_onnxruntime.so
          DESTINATION edgekit/runners/${triple})
endforeach()
