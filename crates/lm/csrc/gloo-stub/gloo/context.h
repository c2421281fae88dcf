// libtorch contains gloo, and ProcessGroupGloo.hpp refers to a few of its classes, but its headers
// are not shipped. c10d.cpp only passes pointers to them, so these declarations are sufficient.
#pragma once

#include <chrono>

namespace gloo {
class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
};
}
