// The floating-point environment that results depend on.
#ifndef KVLINGUA_CAST_ENVIRONMENT_H_
#define KVLINGUA_CAST_ENVIRONMENT_H_

#include <cfenv>

namespace kvl {

// While it lives this thread rounds to nearest and keeps subnormal numbers, whatever the caller has set.
class DefaultEnvironment {
  public:
    DefaultEnvironment() {
        std::fegetenv(&before_);
        std::fesetenv(FE_DFL_ENV);
    }
    ~DefaultEnvironment() { std::fesetenv(&before_); }
    DefaultEnvironment(const DefaultEnvironment&) = delete;
    DefaultEnvironment& operator=(const DefaultEnvironment&) = delete;

  private:
    std::fenv_t before_;
};

}  // namespace kvl

#endif  // KVLINGUA_CAST_ENVIRONMENT_H_
