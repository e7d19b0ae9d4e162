# Debian's cross toolchain: apt-get install g++-aarch64-linux-gnu.
# RIS_SYSROOT: what get-arm64-packages.sh laid out.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(RIS_SYSROOT "" CACHE PATH "Folder with the target's libraries")
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES RIS_SYSROOT)
set(CMAKE_FIND_ROOT_PATH "${RIS_SYSROOT}/usr" /usr/aarch64-linux-gnu)
set(CMAKE_LIBRARY_ARCHITECTURE aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
