//! The program as its user sees it: run against a control plane that answers what a test tells it,
//! against a bare vault, as a supervisor of scripts, and with input that cannot work.

#[cfg(test)]
mod answers;
#[cfg(test)]
mod bad_input;
#[cfg(test)]
mod boot;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod machines;
#[cfg(test)]
mod run;
#[cfg(test)]
mod streams;
#[cfg(test)]
mod up;
#[cfg(test)]
mod vault;
#[cfg(test)]
mod vault_keys;
#[cfg(test)]
mod verbs;
